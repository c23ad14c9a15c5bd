"""A backward pass of an objective without a trainer, through the real path of the data.

``T`` response tokens, ``B`` responses, ``N`` pairs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lit_pref.data.collate import RoundTensors, sampled_logps
from lit_pref.objectives.base import ObjectiveModule
from lit_pref.objectives.step import backward, backward_coupled
from lit_pref.types import Batch, FlatTokens, Group, Response, Round, TokenStats

__all__ = [
    "HeldConstants",
    "PairNumbers",
    "StandInTrainer",
    "assert_close",
    "cotangents",
    "coupled",
    "extremes",
    "fill_sampled",
    "flat_gradient",
    "forward_stats",
    "gradients",
    "make_batch",
    "make_round",
    "moved",
    "pair_numbers",
    "response_sums",
    "trainable",
    "whole_loss",
]


@dataclass
class StandInTrainer:
    """The few things of a trainer that one backward pass reads.

    Attributes:
        world_size: number of processes to imitate.
        sums: what ``reduce`` returns, call by call; None: what it is given (one process).
        sent: what ``reduce`` was given.
    """

    world_size: int = 1
    global_rank: int = 0
    global_step: int = 0
    sums: list[Tensor] | None = None
    sent: list[Tensor] = field(default_factory=list)
    log_every_n_steps: int = 1
    loggers: list[Any] = field(default_factory=list)

    @property
    def strategy(self) -> StandInTrainer:
        return self

    @property
    def precision_plugin(self) -> Any:
        return SimpleNamespace(forward_context=contextlib.nullcontext)

    @property
    def datamodule(self) -> Any:
        return SimpleNamespace(total_steps=100, progress=dict, reuse=1, batches_per_pass=1)

    def backward(self, loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        loss.backward()

    def reduce(self, values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.sent.append(values)
        return values if self.sums is None else self.sums[len(self.sent) - 1]


def make_round(module: ObjectiveModule, groups: list[Group], *, index: int = 0) -> Round:
    """A round as the DataModule makes it."""
    round = Round(index=index, groups=groups)
    module.begin_round(index)
    round.keep = module.select(round, seed=0)
    round.notes = module.annotate(round, module.forward_pass(None))
    round.notes.token.update(sampled_logps(round).token)
    round.view = module.view(round, seed=0)
    module.observe(round)
    return round


def make_batch(
    round: Round, *, micro_batch_tokens: int | None = None, rank: int = 0, world: int = 1
) -> Batch:
    """All groups of a round as the batch of one process."""
    every = list(range(len(round.groups)))
    return RoundTensors(round).batch(
        every,
        mine=every[rank::world],
        version=0,
        uses=0,
        micro_batch_tokens=micro_batch_tokens,
        index=(round.index, 0, 0),
    )


def gradients(module: ObjectiveModule, batch: Batch) -> Tensor:
    """The flat gradient of all trainable parameters, by the code that trains."""
    module.zero_grad(set_to_none=True)
    if batch.counts["responses"] > 0:
        (backward_coupled if module.couples_batch else backward)(module, batch)
    return flat_gradient(module)


def trainable(module: ObjectiveModule) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


def flat_gradient(module: ObjectiveModule) -> Tensor:
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainable(module)]
    return torch.cat([p.detach().reshape(-1) for p in parts])


def forward_stats(module: ObjectiveModule, tokens: FlatTokens) -> TokenStats:
    return module.policy(tokens, stats=tuple(module.token_stats()))


def coupled(module: ObjectiveModule, batch: Batch) -> Batch:
    with torch.no_grad():
        return module.couple(batch) if module.couples_batch else batch


def cotangents(module: ObjectiveModule, batch: Batch) -> Tensor:
    """[T] dLoss/dtoken_logps of the whole batch; 0 where the loss does not read them."""
    batch = coupled(module, batch)
    stats = forward_stats(module, batch.tokens)
    leaf = stats.logps.detach().requires_grad_()
    stats.logps = leaf
    loss = module.batch_loss(stats, batch)
    if not loss.requires_grad:
        return torch.zeros_like(leaf)
    (grad,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    return torch.zeros_like(leaf) if grad is None else grad


class HeldConstants(TorchFunctionMode):
    """Holds everything behind a stop-gradient at the values that it had when recorded."""

    def __init__(self, values: list[Tensor] | None = None) -> None:
        super().__init__()
        self.recorded: list[Tensor] = []
        self.values = None if values is None else iter(values)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        stopped = getattr(func, "__name__", "") == "detach" or not torch.is_grad_enabled()
        if not stopped or not isinstance(out, Tensor):
            return out
        if self.values is None:
            self.recorded.append(out.clone())
            return out
        return next(self.values)


def assert_close(a: Tensor, b: Tensor, tolerance: float, what: str) -> None:
    gap = float((a - b).abs().max()) if a.numel() else 0.0
    size = max(float(b.abs().max()) if b.numel() else 0.0, 1e-8)
    assert gap <= tolerance * size, f"{what}: differs by {gap:.3g} of {size:.3g}"


def fill_sampled(module: ObjectiveModule, groups: Iterable[Group]) -> None:
    """Log-probs as a sampler records them."""
    groups = list(groups)
    tokens = FlatTokens.from_groups(groups)
    with torch.no_grad():
        parts = module.policy(tokens).logps.split(tokens.lengths)
    for response, part in zip((r for g in groups for r in g.responses), parts, strict=True):
        response.policy_logps = response.behaviour_logps = part.tolist()


def whole_loss(module: ObjectiveModule, batch: Batch) -> float:
    """The loss of a batch, in one piece."""
    batch = coupled(module, batch)
    with torch.no_grad():
        return float(module.batch_loss(forward_stats(module, batch.tokens), batch))


def response_sums(token_values: Tensor, tokens: FlatTokens) -> list[float]:
    """Sum over each response, as plain numbers."""
    return [float(part.sum()) for part in token_values.split(tokens.lengths)]


@dataclass
class PairNumbers:
    """One pair as plain numbers, for formulas written out in a test.

    Attributes:
        w: log-prob of the chosen response.
        l: log-prob of the rejected response.
        ref_w: the reference's of the chosen one (0 without notes).
        ref_l: the reference's of the rejected one (0 without notes).
        len_w: tokens of the chosen response.
        len_l: tokens of the rejected response.
    """

    w: float
    l: float  # noqa: E741
    ref_w: float
    ref_l: float
    len_w: int
    len_l: int

    @property
    def h_w(self) -> float:
        """Log-ratio of the chosen response."""
        return self.w - self.ref_w

    @property
    def h_l(self) -> float:
        """Log-ratio of the rejected response."""
        return self.l - self.ref_l


def pair_numbers(module: ObjectiveModule, batch: Batch) -> list[PairNumbers]:
    """The pairs of a batch as plain numbers, in order."""
    assert batch.view.pairs is not None
    with torch.no_grad():
        logps = response_sums(module.policy(batch.tokens).logps, batch.tokens)
    notes = batch.notes.token.get("ref_logps", torch.zeros(sum(batch.tokens.lengths)))
    ref = response_sums(notes.double(), batch.tokens)
    size = batch.tokens.lengths
    return [
        PairNumbers(logps[i], logps[j], ref[i], ref[j], size[i], size[j])
        for i, j in batch.view.pairs.tolist()
    ]


def extremes(group: Group) -> tuple[Response, Response]:
    """The responses with the highest and the lowest reward."""
    ordered = sorted(group.responses, key=lambda r: -(r.reward or 0.0))
    return ordered[0], ordered[-1]


@contextlib.contextmanager
def moved(parameters: list[Tensor], direction: list[Tensor], shift: float) -> Iterator[None]:
    """Parameters shifted along a direction for the time of a block."""
    with torch.no_grad():
        before = [p.detach().clone() for p in parameters]
        for p, d in zip(parameters, direction, strict=True):
            p.add_(d, alpha=shift)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, b in zip(parameters, before, strict=True):
                p.copy_(b)
