"""What the evaluation's own samples say beyond means: intervals, diversity, lengths, entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import torch

from lit_pref.callbacks.occasion import Occasion
from lit_pref.data.evaluation import Measured
from lit_pref.data.gather import gather_strided
from lit_pref.functional.instruments import (
    correlation,
    count_responses,
    enumerate_responses,
    exact_kl,
)
from lit_pref.metrics.instruments import DistinctN, LengthStatistics, MeanInterval
from lit_pref.types import FlatTokens, Group, Prompt, Refusal, Response

__all__ = ["SampleStatistics", "exact_divergences"]

_ORDERS = (1, 2, 3)
_AT_ONCE = 100_000
"""Tokens of enumerated responses that go through a model in one call."""


class SampleStatistics(L.Callback):
    """Intervals of reward and KL, distinct-n, spread of lengths; of the validation samples.

    Where every response can be enumerated (a bandit with few actions and positions), ``val/kl``
    becomes the exact value and its interval has no width; ``val/forward_kl`` is exact then too.

    Args:
        distinct: lengths of n-grams for distinct-n, out of 1, 2 and 3.
        entropy: ``sampled`` leaves ``val/entropy`` (minus the log-prob of sampled tokens) alone;
            ``distribution`` also logs ``val/next_token_entropy``, the entropy of the whole
            next-token distribution at each position: less noise, one forward more.
        exact_limit: enumerate where a prompt has at most so many responses (0: never).
    """

    def __init__(
        self,
        *,
        distinct: Sequence[int] = (1, 2),
        entropy: Literal["sampled", "distribution"] = "sampled",
        exact_limit: int = 10_000,
    ) -> None:
        if any(n not in _ORDERS for n in distinct):
            raise Refusal(
                f"callbacks.samples.distinct takes numbers out of {list(_ORDERS)}, got "
                f"{list(distinct)}"
            )
        if entropy not in ("sampled", "distribution"):
            raise Refusal(
                f"callbacks.samples.entropy must be sampled or distribution, got {entropy!r}"
            )
        self.distinct = tuple(distinct)
        self.entropy = entropy
        self.exact_limit = exact_limit

    def measure(self, occasion: Occasion) -> dict[str, float]:
        """See ``callbacks.occasion.Instrument``."""
        measured = occasion.measured
        if measured is None:
            return {}
        out = {**_intervals(measured), **self._of_responses(measured)}
        if self.entropy == "distribution":
            out.update(_next_token_entropy(occasion, measured.groups))
        if occasion.has_reference and _can_be_listed(occasion, self.exact_limit):
            for name, values in exact_divergences(occasion).items():
                mean = sum(values) / len(values)
                out.update({f"val/{name}{end}": mean for end in ("", "_low", "_high")})
        return out

    def _of_responses(self, measured: Measured) -> dict[str, float]:
        flat = [r for g in measured.groups for r in g.responses]
        lengths = [len(r.ids) for r in flat]
        spread = LengthStatistics(sync_on_compute=False)
        spread.update(lengths)
        found = spread.compute()
        if self.distinct:
            distinct = DistinctN(n=self.distinct, sync_on_compute=False)
            distinct.update([r.ids for r in flat])
            found.update(distinct.compute())
        rewards = [r.reward for r in flat]
        if all(r is not None for r in rewards):
            linear = correlation([float(n) for n in lengths], rewards)  # type: ignore[arg-type]
            if linear is not None:
                found["length_reward_correlation"] = linear
        return {f"val/{name}": value for name, value in found.items()}


def _intervals(measured: Measured) -> dict[str, float]:
    """Ends of the 95 % intervals of reward and KL over prompts; the means are there already."""
    values: dict[str, list[float]] = {}
    rewards = [r.reward for g in measured.groups for r in g.responses]
    if all(r is not None for r in rewards):
        values["reward"] = rewards  # type: ignore[assignment]
    if "reference" in measured.logps:
        values["kl"] = measured.kl()
    out = {}
    for name, numbers in values.items():
        metric = MeanInterval(f"val/{name}", sync_on_compute=False)
        metric.update(measured.by_group(numbers))
        found = metric.compute()
        out.update({f"val/{name}{end}": found[f"val/{name}{end}"] for end in ("_low", "_high")})
    return out


def _next_token_entropy(occasion: Occasion, groups: Sequence[Group]) -> dict[str, float]:
    rank, world = occasion.trainer.global_rank, occasion.trainer.world_size
    tokens = FlatTokens.from_groups(groups[rank::world])
    forward = occasion.module.forward_pass(occasion.data.micro_batch_tokens)
    entropy = forward("policy", tokens, stats=("entropy",)).entropy
    mine = torch.zeros(2, dtype=torch.float64)
    if entropy is not None:
        mine = torch.stack([entropy.double().sum(), torch.tensor(float(len(entropy))).double()])
    parts = gather_strided([mine.tolist()], world)
    total, count = (sum(column) for column in zip(*parts, strict=True))
    return {"val/next_token_entropy": total / count} if count else {}


# --------------------------------------------------------------------------- enumeration


def _space(occasion: Occasion) -> tuple[int, int, tuple[int, ...]]:
    """(vocabulary, tokens at most, end tokens) of responses; a vocabulary of 0 is not known."""
    spec = getattr(occasion.module.policy, "spec", None)
    sampler, task = occasion.data.sampler, occasion.data.task
    ends = (*task.eos_ids, *getattr(sampler, "stop_ids", ()))
    return int(getattr(spec, "vocab_size", 0) or 0), sampler.max_new_tokens, ends


def _can_be_listed(occasion: Occasion, limit: int) -> bool:
    """Whether there are at most ``limit`` responses to a prompt."""
    vocabulary, length, ends = _space(occasion)
    going_on = vocabulary - len(set(ends))
    if not vocabulary or limit < 1:
        return False
    if going_on > 1 and length * math.log(going_on) > math.log(limit) + 1:
        return False  # far more; the number itself may have thousands of digits
    return count_responses(vocabulary, length, ends) <= limit


def exact_divergences(occasion: Occasion) -> dict[str, list[float]]:
    """Exact ``kl`` (policy to reference) and ``forward_kl`` of each validation prompt, in nats.

    Args:
        occasion: of a policy whose responses can all be listed.
    """
    vocabulary, length, ends = _space(occasion)
    everything = list(enumerate_responses(vocabulary, length, ends))
    prompts: list[Prompt] = occasion.data.validation_prompts
    rank, world = occasion.trainer.global_rank, occasion.trainer.world_size
    mine = prompts[rank::world]
    some = max(_AT_ONCE // max(sum(map(len, everything)), 1), 1)
    rows: list[tuple[float, float]] = []
    forward: Any = occasion.module.forward_pass(occasion.data.micro_batch_tokens)
    longest = -(-len(prompts) // world)  # shards meet in each forward: as many in every process
    for start in range(0, longest, some):
        part = mine[start : start + some]
        groups = [
            Group(prompt=p, responses=[Response(ids=ids) for ids in everything]) for p in part
        ]
        tokens = FlatTokens.from_groups(groups)
        sums = []
        for which in ("policy", "reference"):
            token_logps = forward(which, tokens).logps.double()
            zeros = torch.zeros(tokens.num_responses, dtype=torch.float64)
            sums.append(
                zeros.index_add(0, tokens.owner(), token_logps).view(len(part), len(everything))
            )
        policy, reference = (s.log_softmax(-1) for s in sums)  # float error of the sum to 1
        reverse, ahead = exact_kl(policy, reference), exact_kl(reference, policy)
        rows += list(zip(reverse.tolist(), ahead.tolist(), strict=True))
    every = gather_strided(rows, world)
    return {"kl": [r for r, _ in every], "forward_kl": [f for _, f in every]}
