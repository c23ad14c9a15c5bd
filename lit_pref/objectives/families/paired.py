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
)
from lit_pref.functional.rng import generator
from lit_pref.objectives.base import ObjectiveModule, SharedArgs
from lit_pref.types import Group, Needs, Policy, Refusal, Round, View

__all__ = ["PairedModule", "PairwiseArgs"]


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
        min_gap: pairs whose rewards differ by less are left out, and counted.
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
        scores = order_scores(
            [r.rank for r in group.responses],
            [r.reward for r in group.responses],
            [r.label for r in group.responses],
        )
        if scores is None or group.weight == 0:
            return []
        draws = generator(seed, "pairs", round, slot, group.prompt.id)
        if group.comparisons is not None:  # an oracle's own verdicts, not those of win shares
            return compared_pairs(
                group.comparisons, scores, self.pairs, min_gap=self.min_gap, generator=draws
            )
        return pair_indices(
            scores,
            self.pairs,
            min_gap=self.min_gap,
            temperature=self.pair_temperature,
            generator=draws,
        )

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
        start = ties = 0
        for slot, (group, keep) in enumerate(zip(round.groups, round.keep, strict=True)):
            place = {k: start + n for n, k in enumerate(k for k, used in enumerate(keep) if used)}
            start += len(place)
            found = self.group_pairs(group, slot, round.index, seed)
            ties += not found
            share = 1.0 if self.pair_mean == "pooled" else 1.0 / max(len(found), 1)
            for chosen, rejected in found:
                index.append((place[chosen], place[rejected]))
                margins.append(group.margin or 0.0)
                weights.append(group.weight * share)
        round.counts["data/groups_without_pair"] = float(ties)
        return View(
            pairs=torch.tensor(index, dtype=torch.long).reshape(-1, 2),
            pair={"margin": torch.tensor(margins), "weight": torch.tensor(weights)},
        )
