"""Best-of-N: imitate the best of the responses to a prompt (arXiv 2404.14367)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.supervised import push_down, top_k_mask, unlikelihood
from lit_pref.objectives.checks import choice, within
from lit_pref.objectives.families.supervised import (
    SupervisedArgs,
    SupervisedModule,
    Weights,
    group_scores,
)
from lit_pref.types import Batch, Group, Needs, Policy, Round, TokenStats, View

__all__ = ["BestOfN"]

Negative = Literal["none", "worst", "average", "sum", "unlikelihood"]
NEGATIVES: tuple[str, ...] = ("none", "worst", "average", "sum", "unlikelihood")


class BestOfN(SupervisedModule):
    r"""Maximum likelihood of the best response, with an optional explicit negative term.

    .. math:: -\frac{1}{Z}\sum_x \left[\log\pi(y_{best}) - \beta\,N(x)\right]

    ============ =====================================================
    negative     N(x)
    ============ =====================================================
    none         0
    worst        log-prob of the worst response
    average      mean log-prob of all but the best
    sum          sum of the log-probs of all but the best
    unlikelihood sum of -log(1 - prob) of all but the best
    ============ =====================================================

    (arXiv 2404.14367, section 3, and its code for the negative terms.) Of equal rewards the
    first counts as best. The term is unbounded but for ``unlikelihood``; see ``gate``.

    Args:
        policy: the model to train.
        negative: the negative term.
        negative_coef: its weight beta.
        gate: a worse response is pushed down only while its probability is more than so many
            times the best one's. None: 0.01 for ``average`` and ``sum``, no gate for the others,
            as in the code of the token bandit. 0: no gate. ``unlikelihood`` never has one.
        **shared: see ``SupervisedModule``.

    Raises:
        Refusal: an argument out of range.
    """

    needs = Needs(responses=2)
    paper = "2404.14367"

    def __init__(
        self,
        policy: Policy,
        *,
        negative: Negative = "none",
        negative_coef: float = 0.05,
        gate: float | None = None,
        **shared: Unpack[SupervisedArgs],
    ) -> None:
        choice("negative", negative, NEGATIVES)
        shared.setdefault("denominator", "responses")
        super().__init__(policy, **shared)
        self.negative: Negative = negative
        self.negative_coef = within(
            "negative_coef", negative_coef, 0, math.inf, what="a weight, 0.05 as published"
        )
        published = 0.01 if negative in ("average", "sum") else 0.0
        self.gate = (
            published
            if gate is None
            else within(
                "gate", gate, 0, 1, what="a ratio of probabilities, 0.01 as published, 0 for none"
            )
        )
        if negative != "none" and self.negative_coef > 0:
            self.negative_gradient = True
            self.whole_prompts = True

    # ------------------------------------------------------------------ the view

    def weights(self, round: Round, *, seed: int) -> Weights:
        out: Weights = []
        for group in round.groups:
            roles = self._roles(group)
            out.append([None if role == 0 else float(role > 0) for role in roles])
        return out

    def _roles(self, group: Group) -> list[float]:
        """For each response 1 if it is the best, -c if it is pushed down with share c, else 0."""
        scores, count = group_scores(group), len(group.responses)
        if scores is None:
            return [0.0] * count
        best = top_k_mask(scores, 1)
        if self.negative == "none":
            return [float(b) for b in best]
        if self.negative == "worst":
            worst = min(range(count), key=lambda i: (scores[i], i))
            return [1.0 if b else -float(i == worst) for i, b in enumerate(best)]
        share = 1.0 / max(count - 1, 1) if self.negative == "average" else 1.0
        return [1.0 if b else -share for b in best]

    def view(self, round: Round, *, seed: int) -> View:
        view = super().view(round, seed=seed)
        pairs: list[tuple[int, int]] = []
        shares: list[float] = []
        place = 0
        imitated: list[float] = []
        for group, keep in zip(round.groups, round.keep, strict=True):
            used = []
            for role, kept in zip(self._roles(group), keep, strict=True):
                if kept:
                    used.append((role, place))
                    place += 1
            best = [n for role, n in used if role > 0]
            imitated += [group.weight * float(role > 0) for role, _ in used]
            for role, n in used:
                if role < 0 and best:
                    pairs.append((best[0], n))
                    shares.append(-role * group.weight)
        weight = torch.tensor(imitated)
        view.response = self.columns(round, weight, torch.ones_like(weight))
        view.pairs = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
        view.pair = {"weight": torch.tensor(shares)}
        return view

    # ------------------------------------------------------------------ the loss

    def batch_loss(self, stats: TokenStats, batch: Batch) -> Tensor:
        loss = super().batch_loss(stats, batch)
        pairs = batch.view.pairs
        if not self.negative_gradient or pairs is None:
            return loss
        logps = self.response_sums(stats.logps, batch.tokens)
        best, worse = logps[pairs[:, 0]], logps[pairs[:, 1]]
        share = batch.view.pair["weight"].to(logps)
        if self.negative == "unlikelihood":
            terms = unlikelihood(worse)
        else:
            terms = push_down(worse, best, gate=self.gate)
        self.window.add("logps/chosen", best)
        self.window.add("logps/rejected", worse)
        self.window.add("negative/passed_gate", (terms != 0).to(logps))
        return loss + self.negative_coef * (terms * share).sum() / self.normaliser(batch)
