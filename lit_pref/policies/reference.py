"""Reference models: what the policy is held near and KL is measured to."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from lit_pref.policies.causal_lm import HFPolicy
from lit_pref.policies.reference_cache import ReferenceCache
from lit_pref.policies.sharding import is_sharded
from lit_pref.types import FlatTokens, Policy, Refusal, TokenStats

__all__ = ["FrozenReference", "MovingReference"]


class FrozenReference:
    """A copy of the policy as it is before training; with LoRA the policy without its adapters.

    It is not a submodule of the objective, so no checkpoint carries its weights; a resumed run
    makes it again from the same source, before the checkpoint is loaded. On a CPU, weights that
    are just as in the model's own safetensors file are used from there, without a second copy in
    memory.

    Args:
        cache_dir: folder below which log-probs of stored responses are kept for later runs; None
            computes them in every run, as do policies that are no language model.
    """

    def __init__(self, *, cache_dir: str | Path | None = None) -> None:
        self.copy: HFPolicy | None = None
        self.cache_dir = cache_dir
        self._cache: ReferenceCache | None = None

    @property
    def fingerprint(self) -> str | None:
        """What the weights are; None before ``prepare``."""
        return None if self.copy is None else self.copy.spec.fingerprint

    def prepare(self, policy: Policy) -> None:
        """Take the copy; does nothing the second time."""
        if self.copy is not None:
            return
        if isinstance(policy, HFPolicy):
            self.copy = policy.frozen_copy(on_disk=True)
        else:  # any policy that has the methods used here
            self.copy = cast(HFPolicy, policy).frozen_copy()

    def to(self, device: torch.device) -> None:
        if self.copy is None:
            return
        self.copy.to(device)
        if torch.device(device).type != "cpu" and getattr(self.copy, "mapped", None) is not None:
            self.copy.mapped = None  # read from the file and not needed there any more

    def token_logps(self, tokens: FlatTokens, *, stats: Iterable[str] = ()) -> TokenStats:
        assert self.copy is not None, "prepare comes first"
        mapped = getattr(self.copy, "mapped", None)
        if mapped is not None:
            mapped.wake()
        with torch.no_grad():
            return self.copy.token_logps(tokens, stats=stats)

    def rest(self) -> None:
        """Called after its work in a round: weights that are in a file leave the memory."""
        mapped = getattr(self.copy, "mapped", None)
        if mapped is not None:
            mapped.rest()

    def cache(self, *, precision: str) -> ReferenceCache | None:
        """Where log-probs of stored responses are kept; None if nowhere.

        Args:
            precision: of the forwards, as the trainer names it.
        """
        assert self.copy is not None, "prepare comes first"
        digest = getattr(self.copy, "base_digest", None)  # the bandits' small policies have none
        if self.cache_dir is None or digest is None or is_sharded(self.copy):
            return None
        if self._cache is None:
            facts = {
                "weights": digest(),
                "precision": precision,
                "forward": self.copy.path,
                "device": self.copy.device.type,
                "torch": torch.__version__,
                "transformers": version("transformers"),
            }
            self._cache = ReferenceCache(self.cache_dir, facts)
        return self._cache

    def advance(self, policy: Policy, round: int) -> None:
        """A frozen reference does not move."""


class MovingReference:
    r"""A copy of the policy that follows it at round starts.

    .. math:: \theta_{ref} \leftarrow a\,\theta + (1 - a)\,\theta_{ref}

    (arXiv 2404.09656, soft and hard update.) Within a round it stands still, so its log-probs can
    be noted once per round. Its weights are state of the run: whoever owns it puts ``state`` into
    checkpoints.

    Args:
        mix: a, the share of the policy in (0, 1]; 1 replaces the reference (hard update).
        every: rounds between two moves.
    """

    fingerprint: str | None = None
    """It has none: its weights change."""

    def __init__(self, *, mix: float = 0.6, every: int = 1) -> None:
        if not 0 < mix <= 1:
            raise Refusal(
                f"mix of the moving reference must be in (0, 1], got {mix}; 0.6 is published, "
                "1 replaces the reference by the policy"
            )
        if not isinstance(every, int) or every < 1:
            raise Refusal(
                "every of the moving reference must be a whole number of rounds from 1, got "
                f"{every!r}"
            )
        self.mix, self.every = float(mix), every
        self.copy: HFPolicy | None = None

    def prepare(self, policy: Policy) -> None:
        """Take the copy; does nothing the second time."""
        if self.copy is None:
            adapted = getattr(policy, "lora", None) is not None
            trained = cast(HFPolicy, policy)
            self.copy = trained.frozen_copy(adapters=True) if adapted else trained.frozen_copy()

    def to(self, device: torch.device) -> None:
        if self.copy is not None:
            self.copy.to(device)

    def token_logps(self, tokens: FlatTokens, *, stats: Iterable[str] = ()) -> TokenStats:
        assert self.copy is not None, "prepare comes first"
        with torch.no_grad():
            return self.copy.token_logps(tokens, stats=stats)

    @torch.no_grad()
    def advance(self, policy: Policy, round: int) -> None:
        """Move at the start of every ``every``-th round; the first round has nothing to follow."""
        assert self.copy is not None, "prepare comes first"
        if round == 0 or round % self.every:
            return
        theirs = dict(cast(HFPolicy, policy).named_parameters())
        for name, weight in self.copy.named_parameters():
            if theirs[name] is not weight:  # with LoRA both have the same weights
                weight.lerp_(theirs[name].detach().to(weight), self.mix)

    def state(self) -> dict[str, Tensor]:
        """All weights, for checkpoints."""
        return {} if self.copy is None else dict(self.copy.state_dict())

    def load(self, state: dict[str, Tensor]) -> None:
        """Inverse of ``state``; after ``prepare``."""
        assert self.copy is not None, "prepare comes first"
        self.copy.load_state_dict(state)
