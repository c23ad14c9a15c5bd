"""Forwards without gradient over whole rounds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from lit_pref.engine.forward import micro_batches
from lit_pref.policies.sharding import gathered
from lit_pref.types import FlatTokens, TokenStats

__all__ = ["EngineForward"]

NO_GRADIENT_TOKENS = 4096
"""Tokens of one forward where nothing else is said: more is not faster, and needs more memory."""

_FIELDS = ("logps", "entropy", "sum_squares", "hidden", "final_hidden", "values")


class EngineForward:
    """Runs a model over many tokens without gradient, in micro-batches; results on the host.

    Args:
        models: by name (``"policy"``, ``"reference"``): anything with ``token_logps``.
        micro_batch_tokens: token budget of one forward; None: that of ``NO_GRADIENT_TOKENS``. A
            round may be the whole data set, so there is always one.
        device: where the models are.
        context: entered around each forward (autocast of the trainer's precision).
    """

    def __init__(
        self,
        models: Mapping[str, Any],
        micro_batch_tokens: int | None,
        device: torch.device,
        context: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.models = models
        self.micro_batch_tokens = micro_batch_tokens or NO_GRADIENT_TOKENS
        self.device = device
        self.context = context
        self.progress: Callable[[int, int], None] = lambda done, total: None
        """Told (responses done, responses in all) after each micro-batch."""

    @torch.no_grad()
    def __call__(self, which: str, tokens: FlatTokens, *, stats: Iterable[str] = ()) -> TokenStats:
        model = self.models[which]
        parts: dict[str, list[Tensor]] = {name: [] for name in _FIELDS}
        order: list[int] = []
        training = [module for module in _modules(model) if module.training]
        for module in training:
            module.eval()
        with self.context(), contextlib.ExitStack() as stack:
            for module in _modules(model):  # processes have different numbers of micro-batches
                stack.enter_context(gathered(module))
            for index in micro_batches(tokens, self.micro_batch_tokens):
                out = model.token_logps(tokens.select(index).to(self.device), stats=stats)
                order += index
                self.progress(len(order), tokens.num_responses)
                for name in _FIELDS:
                    value = getattr(out, name)
                    if value is not None:
                        parts[name].append(value.float().cpu())
        for module in training:
            module.train()
        rest = getattr(model, "rest", None)
        if rest is not None:  # what it holds is not needed before the next pass
            rest()
        if not order:
            return TokenStats(logps=torch.zeros(0))
        found = {n: _reorder(torch.cat(p), order, tokens, n) for n, p in parts.items() if p}
        return TokenStats(**found)


def _modules(model: Any) -> list[nn.Module]:
    """The networks behind a named model: itself, or what it holds."""
    held = [model] if isinstance(model, nn.Module) else list(vars(model).values())
    return [m for m in held if isinstance(m, nn.Module)]


def _reorder(values: Tensor, order: list[int], tokens: FlatTokens, name: str) -> Tensor:
    """From the order of the micro-batches back to the order of the responses."""
    place = sorted(range(len(order)), key=order.__getitem__)
    if name == "final_hidden":
        return values[place]
    pieces = values.split([tokens.lengths[i] for i in order])
    return torch.cat([pieces[i] for i in place])
