"""Direct preference optimisation (arXiv 2305.18290) with its orthogonal refinements."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from lit_pref.functional.preference import (
    DIVERGENCES,
    Divergence,
    divergence_score,
    dpo_loss,
    length_desensitised_sum,
    wpo_log_weight,
)
from lit_pref.functional.segments import segment_sum
from lit_pref.objectives.checks import choice, positive, within
from lit_pref.objectives.families.pairwise import (
    PairwiseArgs,
    PairwiseModule,
    Side,
    reward_metrics,
)
from lit_pref.types import Needs, Policy, Refusal

__all__ = ["DPO"]


class DPO(PairwiseModule):
    """DPO on sequence log-probs.

    The loss is ``functional.preference.dpo_loss``. Everything beyond ``beta`` is off as published
    and can be combined freely.

    Args:
        policy: the model to train.
        beta: strength of the pull towards the reference, larger than 0.
        label_smoothing: probability that a label is wrong, in [0, 0.5) (conservative DPO).
        nll_coef: weight of the chosen response's mean negative log-likelihood per token
            (arXiv 2404.19733, eq. 1; 1 there). TRL's ``sft`` term is a mean over all tokens.
        reduction: log-ratios are the ``sum`` over tokens, or their ``mean`` (length-normalised
            DPO, arXiv 2411.15124). ``position`` takes the loss at each position that both
            responses have and averages, as the code of arXiv 2404.14367 does; for comparison only.
        divergence: what holds the policy near the reference, see
            ``functional.preference.divergence_score`` (arXiv 2309.16240).
        divergence_alpha: of the alpha divergence, in (0, 1).
        ld_alpha: weight of the tokens beyond the pair's shorter length, in [0, 1]
            (arXiv 2409.06411); 1 is DPO.
        weighting: ``wpo`` weighs pairs by how likely the policy is to sample them
            (arXiv 2406.11827, eq. 2).
        wpo_max: largest weight, None for none, as published and in TRL 1.16.
        **shared: see ``PairwiseModule``.

    Raises:
        Refusal: an argument out of range, or no reference.
    """

    needs = Needs(pairs=True, reference=True, responses=2)
    negative_gradient = True
    paper = "2305.18290"

    def __init__(
        self,
        policy: Policy,
        *,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        nll_coef: float = 0.0,
        reduction: Literal["sum", "mean", "position"] = "sum",
        divergence: Divergence = "reverse_kl",
        divergence_alpha: float = 0.5,
        ld_alpha: float = 1.0,
        weighting: Literal["none", "wpo"] = "none",
        wpo_max: float | None = None,
        **shared: Unpack[PairwiseArgs],
    ) -> None:
        super().__init__(policy, **shared)
        self.beta = positive("beta", beta, usual=0.1)
        self.label_smoothing = within(
            "label_smoothing", label_smoothing, 0, 0.5, ends="[)", what="how often labels are wrong"
        )
        self.nll_coef = within("nll_coef", nll_coef, 0, math.inf, what="a weight, 0 for none")
        choice("reduction", reduction, ("sum", "mean", "position"))
        self.reduction = reduction
        choice("divergence", divergence, DIVERGENCES)
        self.divergence: Divergence = divergence
        self.divergence_alpha = within(
            "divergence_alpha", divergence_alpha, 0, 1, ends="()", what="between the two KLs"
        )
        self.ld_alpha = within("ld_alpha", ld_alpha, 0, 1, what="a weight of tokens; 1 is DPO")
        choice("weighting", weighting, ("none", "wpo"))
        self.weighting = weighting
        self.wpo_max = None if wpo_max is None else positive("wpo_max", wpo_max, usual=1.0)
        if reduction == "position" and (divergence != "reverse_kl" or ld_alpha < 1):
            raise Refusal(
                "objective.reduction=position compares single positions, without "
                "objective.divergence and objective.ld_alpha; leave those out, or use reduction=sum"
            )

    def token_stats(self) -> Iterable[str]:
        return ("sum_squares",) if self.weighting == "wpo" else ()

    def pair_loss(
        self, chosen: Side, rejected: Side, *, margin: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        public = torch.minimum(chosen.lengths, rejected.lengths)
        score_w, score_l = self._score(chosen, public), self._score(rejected, public)
        if self.reduction == "position":
            losses = self._position_losses(chosen, rejected, public)
        else:
            losses = dpo_loss(
                score_w - score_l, beta=self.beta, label_smoothing=self.label_smoothing
            )
        metrics = reward_metrics(self.beta * score_w, self.beta * score_l)
        if self.weighting == "wpo":
            weight = self._wpo(chosen, rejected)
            losses = losses * weight
            metrics["wpo/weight"] = weight
        if self.nll_coef > 0:
            nll = -chosen.logps / chosen.lengths.clamp(min=1)
            losses = losses + self.nll_coef * nll
            metrics["nll"] = nll
        return losses, metrics

    def _score(self, side: Side, public: Tensor) -> Tensor:
        """[N] what stands for the log-ratio."""
        log_ratio = side.log_ratio
        if self.ld_alpha < 1:
            assert side.ref_token_logps is not None and side.all_lengths is not None
            log_ratio = length_desensitised_sum(
                side.token_logps - side.ref_token_logps,
                side.all_lengths,
                side.index,
                public,
                alpha=self.ld_alpha,
                total=None if side.sizes is None else sum(side.sizes),
            )
        if self.reduction == "mean":
            log_ratio = log_ratio / side.lengths.clamp(min=1)
        return divergence_score(log_ratio, self.divergence, alpha=self.divergence_alpha)

    def _position_losses(self, chosen: Side, rejected: Side, public: Tensor) -> Tensor:
        """[N] mean over shared positions of a DPO loss at each (the code of 2404.14367)."""
        assert chosen.ref_token_logps is not None and chosen.all_lengths is not None
        log_ratio = chosen.token_logps - chosen.ref_token_logps
        starts = chosen.all_lengths.cumsum(0) - chosen.all_lengths
        total = None
        if chosen.sizes is not None and rejected.sizes is not None:
            total = sum(map(min, chosen.sizes, rejected.sizes))
        every = torch.arange(len(public), device=public.device)
        pair = torch.repeat_interleave(every, public, output_size=total)
        place = torch.arange(len(pair), device=pair.device) - (public.cumsum(0) - public)[pair]
        first = log_ratio[starts[chosen.index][pair] + place]
        second = log_ratio[starts[rejected.index][pair] + place]
        losses = dpo_loss(first - second, beta=self.beta, label_smoothing=self.label_smoothing)
        return segment_sum(losses, pair, len(public)) / public.clamp(min=1)

    def _wpo(self, chosen: Side, rejected: Side) -> Tensor:
        """[N] weights of the pairs, without gradient."""
        lengths = chosen.all_lengths
        assert chosen.stats.sum_squares is not None and lengths is not None
        tokens = wpo_log_weight(chosen.token_logps, chosen.stats.sum_squares)
        mean = segment_sum(tokens, chosen.owner, len(lengths)) / lengths.clamp(min=1)
        weight = (mean[chosen.index] + mean[rejected.index]).exp()
        return weight if self.wpo_max is None else weight.clamp(max=self.wpo_max)
