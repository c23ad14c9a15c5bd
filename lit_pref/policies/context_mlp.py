"""The policy of the paper's 1-D bandit: an MLP over a fixed table of contexts.

``P`` prompts, ``B`` responses of one token each, ``V`` actions, ``H`` hidden.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_pref.functional.bandit import ACTIONS, reference_probs
from lit_pref.functional.contexts import TABLE, WIDTH, context_table
from lit_pref.policies.prepare import weights_digest
from lit_pref.policies.spec import ModelSpec, digest
from lit_pref.transfer import sent
from lit_pref.types import FlatTokens, Policy, Refusal, TokenStats

__all__ = ["ClosedFormReference", "ContextMLP", "ContextMLPPolicy", "context_mlp"]

log = logging.getLogger(__name__)

_STATS = ("entropy", "sum_squares", "hidden")


def context_mlp(
    *, actions: int = ACTIONS, contexts: int = TABLE, context_width: int = WIDTH, seed: int = 0
) -> ModelSpec:
    """The policy of the paper's 1-D bandit (arXiv 2404.14367, section 4 and its code).

    Args:
        actions: number of actions, the vocabulary.
        contexts: size of the context table; a prompt is one id into it.
        context_width: numbers in one context.
        seed: of the random weights.
    """
    sizes = {"actions": actions, "contexts": contexts, "context_width": context_width}
    for name, value in sizes.items():
        if value < 2:
            raise Refusal(f"model.{name} must be at least 2, got {value}; raise it")

    def load() -> Any:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            return ContextMLP(actions=actions, contexts=contexts, width=context_width)

    return ModelSpec(
        name="context_mlp",
        tokenizer=None,
        eos_ids=(),
        pad_id=0,
        context_length=2,
        vocab_size=actions,
        load=load,
        fingerprint=digest("context_mlp", seed, actions, contexts, context_width),
        policy=ContextMLPPolicy,
    )


class ContextMLP(nn.Module):
    """Context to action logits: 100, 50, LayerNorm, ReLU, 256, ReLU, 256, ReLU, 100.

    Weights are Xavier-uniform with gain 0.01 and biases 0, as in the paper's code.

    Args:
        actions: number of actions.
        contexts: size of the context table.
        width: numbers in one context.
    """

    table: Tensor

    def __init__(self, *, actions: int, contexts: int, width: int) -> None:
        super().__init__()
        table = context_table(size=contexts, width=width)
        self.register_buffer("table", table, persistent=False)
        self.trunk = nn.Sequential(
            nn.Linear(width, 50), nn.LayerNorm(50), nn.ReLU(),
            nn.Linear(50, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(256, actions)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, gain=0.01)
                nn.init.zeros_(module.bias)

    def hidden(self, ids: Tensor) -> Tensor:
        """[P, H] last hidden state of each context id."""
        return self.trunk(self.table[ids])

    def forward(self, ids: Tensor) -> Tensor:
        """[P, V] logits of the action in each context."""
        return self.head(self.hidden(ids))


class ContextMLPPolicy(nn.Module):
    """A policy whose prompt is one id into the context table and whose response is one action.

    Args:
        spec: what to load; see ``context_mlp``.
        initialise: called once with the freshly made network (the task's supervised start).
    """

    plain_head = True
    path = "padded"
    """Its only forward: a row for each response."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        initialise: Callable[[nn.Module], None] | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.initialise = spec, initialise
        self.model: Any = None

    def load(self) -> ContextMLPPolicy:
        """Make the network and bring it to the initial policy; nothing the second time."""
        if self.model is None:
            model = self.spec.load()
            if self.initialise is not None:
                self.initialise(model)
            self.model = model
        return self

    # ------------------------------------------------------------------ scoring

    def forward(self, tokens: FlatTokens, *, stats: Iterable[str] = ()) -> TokenStats:
        """Log-probs of the actions; see ``lit_pref.types.Policy``."""
        self.load()
        wanted = set(stats)
        missing = ", ".join(sorted(wanted - set(_STATS)))
        if missing:
            raise Refusal(
                f"the policy of task=contextual_bandit has no {missing} (no state after a "
                "response): reward models and the like need a language model; use "
                "task=token_bandit"
            )
        _check_shape(tokens.prompt_lengths, tokens.lengths)
        hidden = self.model.hidden(tokens.prompt_ids)  # a prompt is computed once
        place = sent(tokens.prompt_of, hidden.device, torch.long)
        log_probs = self.model.head(hidden).float().log_softmax(-1)
        probs = log_probs.exp() if wanted & {"entropy", "sum_squares"} else None
        entropy = squares = None
        if probs is not None:
            entropy = -(probs * log_probs).sum(-1)[place] if "entropy" in wanted else None
            squares = probs.square().sum(-1)[place] if "sum_squares" in wanted else None
        return TokenStats(
            logps=log_probs[place, tokens.response_ids],
            entropy=entropy,
            sum_squares=squares,
            hidden=hidden[place] if "hidden" in wanted else None,
        )

    def token_logps(self, tokens: FlatTokens, *, stats: Iterable[str] = ()) -> TokenStats:
        return self(tokens, stats=stats)

    def action_logps(self, ids: Tensor) -> Tensor:
        """[P, V] log-prob of every action in each context: what exact expectations are made of."""
        self.load()
        return self.model(ids.to(self.device)).float().log_softmax(-1)

    # ------------------------------------------------------------------ decoding

    def prefill(self, prompts: Sequence[Sequence[int]], copies: int) -> tuple[Tensor, Any]:
        self.load()
        _check_shape([len(p) for p in prompts], [])
        ids = sent([p[0] for p in prompts], self.device)
        return self.model(ids).repeat_interleave(copies, 0), None

    def step(self, token_ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        raise Refusal(
            "a response of task=contextual_bandit is one action; leave sampler.max_new_tokens out"
        )

    def keep_rows(self, state: Any, rows: Tensor) -> Any:
        return state

    # ------------------------------------------------------------------ the rest

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def hidden_size(self) -> int:
        return int(self.model.head.in_features)

    def base_digest(self) -> str:
        """A hash of the table and all weights; ask where they do not train (references)."""
        self.load()
        return weights_digest({**self.model.state_dict(), "table": self.model.table})

    def frozen_copy(self) -> ContextMLPPolicy:
        """A copy without gradients, in eval mode."""
        self.load()
        twin = ContextMLPPolicy(self.spec)
        twin.model = copy.deepcopy(self.model)
        return twin.requires_grad_(False).eval()

    def save_pretrained(self, folder: str) -> None:
        """Write the weights as ``model.safetensors``; no Hugging Face class describes them."""
        from safetensors.torch import save_file

        Path(folder).mkdir(parents=True, exist_ok=True)
        weights = {k: v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()}
        save_file(weights, Path(folder) / "model.safetensors")


class ClosedFormReference:
    """The reference of the paper's 1-D bandit: the bin distribution itself, in every context.

    It is ``functional.bandit.reference_probs``, the target of the supervised start, so KL and
    log-ratios are to the exact distribution (arXiv 2404.14367, section 4).
    """

    fingerprint: str | None = "closed_form/1"

    def __init__(self) -> None:
        self.logps = reference_probs().log().float()

    def prepare(self, policy: Policy) -> None:
        """There is nothing to copy."""

    def to(self, device: torch.device) -> None:
        self.logps = self.logps.to(device)

    def token_logps(self, tokens: FlatTokens, *, stats: Iterable[str] = ()) -> TokenStats:
        if set(stats):
            raise Refusal(
                "reference=closed_form gives log-probs alone; use reference=frozen for an "
                "objective that reads more of its reference"
            )
        if tokens.num_tokens and int(tokens.response_ids.max()) >= len(self.logps):
            raise Refusal(
                f"reference=closed_form is a distribution over {len(self.logps)} actions and does "
                "not fit these tokens; use it with task=contextual_bandit or task=token_bandit"
            )
        return TokenStats(logps=self.logps.to(tokens.response_ids.device)[tokens.response_ids])

    def advance(self, policy: Policy, round: int) -> None:
        """It does not move."""


def _check_shape(prompt_lengths: Sequence[int], lengths: Sequence[int]) -> None:
    if any(n != 1 for n in prompt_lengths) or any(n != 1 for n in lengths):
        raise Refusal(
            "model=context_mlp takes one context id and gives one action; use it with "
            "task=contextual_bandit"
        )
