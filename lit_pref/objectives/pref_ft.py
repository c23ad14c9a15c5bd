"""Preference fine-tuning by imitation of the chosen responses (Pref-FT, arXiv 2404.14367)."""

from __future__ import annotations

import math

import torch
from typing_extensions import Unpack

from lit_pref.functional.pairing import PAIRINGS, Pairing
from lit_pref.functional.rng import generator
from lit_pref.objectives.checks import choice, positive, within
from lit_pref.objectives.families.paired import pairs_of
from lit_pref.objectives.families.supervised import SupervisedArgs, SupervisedModule, Weights
from lit_pref.types import Needs, Policy, Round, View

__all__ = ["PrefFT"]


class PrefFT(SupervisedModule):
    r"""Maximum likelihood of the chosen response of each pair.

    .. math:: -\frac{1}{Z}\sum_{(w, l)} \sum_t \log\pi(y_{w,t})

    (Pref-FT of arXiv 2404.14367, section 3; also Binary FeedME.) A response that wins several
    pairs counts as often, in Z too. Pairs are those that pairwise objectives make with the same
    options.

    Args:
        policy: the model to train.
        pairs: which responses of a group are compared; see ``functional.pairing``.
        min_gap: pairs whose rewards differ by less are left out.
        pair_temperature: of the Bradley-Terry draw.
        **shared: see ``SupervisedModule``.

    Raises:
        Refusal: an argument out of range.
    """

    needs = Needs(pairs=True, responses=2)
    paper = "2404.14367"

    def __init__(
        self,
        policy: Policy,
        *,
        pairs: Pairing = "best_worst",
        min_gap: float = 0.0,
        pair_temperature: float = 1.0,
        **shared: Unpack[SupervisedArgs],
    ) -> None:
        choice("pairs", pairs, PAIRINGS)
        super().__init__(policy, **shared)
        self.pairs: Pairing = pairs
        self.min_gap = within("min_gap", min_gap, 0, math.inf, what="a difference of rewards")
        self.pair_temperature = positive("pair_temperature", pair_temperature, usual=1.0)

    def view(self, round: Round, *, seed: int) -> View:
        view = super().view(round, seed=seed)
        wins = view.response["coefficient"]  # counted in the denominator, unlike other weights
        view.response = self.columns(round, view.response["weight"] * wins, torch.ones_like(wins))
        return view

    def weights(self, round: Round, *, seed: int) -> Weights:
        out: Weights = []
        for slot, group in enumerate(round.groups):
            row: list[float | None] = [None] * len(group.responses)
            found = pairs_of(
                group,
                self.pairs,
                min_gap=self.min_gap,
                temperature=self.pair_temperature,
                draws=generator(seed, "pairs", round.index, slot, group.prompt.id),
            )
            for chosen, _ in found:
                row[chosen] = (row[chosen] or 0.0) + 1.0
            out.append(row)
        return out
