"""What pairwise objectives and reward models share: which responses of a group are compared."""

from __future__ import annotations

from typing import Literal

import torch
from typing_extensions import Unpack

from lit_pref.functional.pairing import (
    PAIRINGS,
    Pairing,
    compared_pairs,
    order_scores,
    pair_indices,
    unusable_pairs,
)
from lit_pref.functional.rng import generator
from lit_pref.objectives.base import ObjectiveModule, SharedArgs
from lit_pref.types import Group, Needs, Policy, Refusal, Round, View

__all__ = ["PairedModule", "PairwiseArgs", "pairs_of"]


class PairwiseArgs(SharedArgs, total=False):
    """Keyword arguments that every objective on pairs takes; see ``PairedModule``."""

    pairs: Pairing
    min_gap: float
    pair_temperature: float
    pair_mean: Literal["pooled", "group"]


class PairedModule(ObjectiveModule):
    """Sees pairs of responses; a family below it says what the loss reads of them.

    Args:
        policy: the model to train.
        pairs: which responses of a group are compared; see ``functional.pairing``.
        min_gap: pairs whose rewards (ranks, where there are no rewards) differ by less are left
            out, and counted.
        pair_temperature: of the Bradley-Terry draw.
        pair_mean: ``pooled``: every pair of the batch counts the same; ``group``: every group.
        **shared: see ``ObjectiveModule``.
    """

    needs = Needs(pairs=True, responses=2)

    def __init__(
        self,
        policy: Policy,
        *,
        pairs: Pairing = "best_worst",
        min_gap: float = 0.0,
        pair_temperature: float = 1.0,
        pair_mean: Literal["pooled", "group"] = "pooled",
        **shared: Unpack[SharedArgs],
    ) -> None:
        if pairs not in PAIRINGS:
            raise Refusal(f"objective.pairs must be one of {', '.join(PAIRINGS)}, got {pairs!r}")
        if pair_mean not in ("pooled", "group"):
            raise Refusal(f"objective.pair_mean must be pooled or group, got {pair_mean!r}")
        if min_gap < 0:
            raise Refusal(f"objective.min_gap must be 0 or larger, got {min_gap}")
        if pair_temperature <= 0:
            raise Refusal(
                f"objective.pair_temperature must be larger than 0, got {pair_temperature}"
            )
        super().__init__(policy, **shared)
        self.pairs: Pairing = pairs
        self.min_gap = float(min_gap)
        self.pair_temperature = float(pair_temperature)
        self.pair_mean = pair_mean

    # ------------------------------------------------------------------ the view

    def group_pairs(self, group: Group, slot: int, round: int, seed: int) -> list[tuple[int, int]]:
        """(chosen, rejected) positions within one group; the same in every pass."""
        return pairs_of(
            group, self.pairs, min_gap=self.min_gap, temperature=self.pair_temperature,
            draws=generator(seed, "pairs", round, slot, group.prompt.id),
        )  # fmt: skip

    def _unusable(self, group: Group) -> tuple[int, int]:
        """(ties, pairs below the gap) among the responses of a group that counts."""
        scores = group_order(group)
        if scores is None or group.weight == 0:
            return 0, 0
        if group.comparisons is not None:
            sure = [abs(2 * p - 1) for _, _, p in group.comparisons]
            return sum(s == 0 for s in sure), sum(0 < s < self.min_gap for s in sure)
        return unusable_pairs(scores, gaps=_rewards(group), min_gap=self.min_gap)

    def select(self, round: Round, *, seed: int) -> list[list[bool]]:
        keep = []
        for slot, group in enumerate(round.groups):
            used = {k for pair in self.group_pairs(group, slot, round.index, seed) for k in pair}
            keep.append([k in used for k in range(len(group.responses))])
        return keep

    def view(self, round: Round, *, seed: int) -> View:
        index: list[tuple[int, int]] = []
        margins: list[float] = []
        weights: list[float] = []
        start = without = ties = close = 0
        for slot, (group, keep) in enumerate(zip(round.groups, round.keep, strict=True)):
            place = {k: start + n for n, k in enumerate(k for k, used in enumerate(keep) if used)}
            start += len(place)
            found = self.group_pairs(group, slot, round.index, seed)
            without += not found
            more = self._unusable(group)
            ties, close = ties + more[0], close + more[1]
            share = 1.0 if self.pair_mean == "pooled" else 1.0 / max(len(found), 1)
            for chosen, rejected in found:
                index.append((place[chosen], place[rejected]))
                margins.append(group.margin or 0.0)
                weights.append(group.weight * share)
        round.counts["data/groups_without_pair"] = float(without)
        round.counts["data/pairs"] = float(len(index))
        round.counts["data/pairs_tied"] = float(ties)
        round.counts["data/pairs_below_gap"] = float(close)
        return View(
            pairs=torch.tensor(index, dtype=torch.long).reshape(-1, 2),
            pair={"margin": torch.tensor(margins), "weight": torch.tensor(weights)},
        )


def pairs_of(
    group: Group, how: Pairing, *, min_gap: float, temperature: float, draws: torch.Generator
) -> list[tuple[int, int]]:
    """(chosen, rejected) positions within one group; none of a group that must not count.

    Args:
        group: the group.
        how: the rule; see ``functional.pairing``.
        min_gap: see ``PairedModule``.
        temperature: of the Bradley-Terry draw.
        draws: for the random rules.
    """
    scores = group_order(group)
    if scores is None or group.weight == 0:
        return []
    if group.comparisons is not None:  # an oracle's own verdicts, not those of win shares
        return compared_pairs(group.comparisons, scores, how, min_gap=min_gap, generator=draws)
    return pair_indices(
        scores, how, gaps=_rewards(group), min_gap=min_gap, temperature=temperature, generator=draws
    )


def group_order(group: Group) -> list[float] | None:
    """What orders the responses of a group, higher is better; None where nothing does."""
    return order_scores(
        [r.rank for r in group.responses],
        [r.reward for r in group.responses],
        [r.label for r in group.responses],
    )


def _rewards(group: Group) -> list[float] | None:
    """Rewards, where every response has one: what gaps are measured in."""
    rewards = [r.reward for r in group.responses if r.reward is not None]
    return rewards if len(rewards) == len(group.responses) else None
