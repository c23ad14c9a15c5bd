"""Reference models: what the policy is held near and KL is measured to."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from lit_pref.policies.hf import HFPolicy
from lit_pref.types import FlatTokens, TokenStats

__all__ = ["FrozenReference"]


class FrozenReference:
    """A copy of the policy as it is before training.

    It is not a submodule of the objective, so no checkpoint carries its weights; a resumed run
    makes it again from the same source, before the checkpoint is loaded.
    """

    def __init__(self) -> None:
        self.copy: HFPolicy | None = None

    @property
    def fingerprint(self) -> str | None:
        """What the weights are; None before ``prepare``."""
        return None if self.copy is None else self.copy.spec.fingerprint

    def prepare(self, policy: HFPolicy) -> None:
        """Take the copy; does nothing the second time."""
        if self.copy is None:
            self.copy = policy.frozen_copy()

    def to(self, device: torch.device) -> None:
        if self.copy is not None:
            self.copy.to(device)

    def token_logps(self, tokens: FlatTokens, *, stats: Iterable[str] = ()) -> TokenStats:
        assert self.copy is not None, "prepare comes first"
        with torch.no_grad():
            return self.copy.token_logps(tokens, stats=stats)

    def advance(self, policy: HFPolicy, round: int) -> None:
        """A frozen reference does not move."""
