"""Responses as they were sampled against the policy now. ``B`` responses, ``T`` tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_pref.functional.importance import chi_square, effective_share, importance_weights
from lit_pref.functional.segments import segment_sum
from lit_pref.metrics.window import Window
from lit_pref.types import Batch

__all__ = ["finish_importance", "track_behaviour", "track_sampling"]

_MEAN, _SQUARE = "importance/weight", "importance/weight_square"


def track_sampling(window: Window, token_logps: Tensor, batch: Batch) -> None:
    """Sampled against recomputed log-probs, where the sampling policy is still the policy.

    Args:
        window: where the differences go.
        token_logps: [T] log-probs now.
        batch: a micro-batch; what is not known there is NaN and left out.
    """
    sampled = batch.notes.token.get("sampled_logps")
    ages = batch.notes.response.get("age")
    if sampled is None or ages is None or not len(sampled):
        return
    gap = (token_logps.detach() - sampled).abs()
    fresh = (ages.to(gap.device)[batch.tokens.owner()] == 0) & sampled.isfinite()
    window.add("sampling/logp_difference", torch.where(fresh, gap, torch.zeros_like(gap)), fresh)


def track_behaviour(window: Window, token_logps: Tensor, batch: Batch) -> None:
    """Importance weights of whole responses, and KL, where the behaviour is known.

    Args:
        window: where sums go; ``finish_importance`` makes metrics of them.
        token_logps: [T] log-probs now.
        batch: a micro-batch.
    """
    behaviour = batch.notes.token.get("behaviour_logps")
    if behaviour is None or not len(batch.tokens.lengths):
        return
    gap = token_logps.detach().float() - behaviour.to(token_logps.device)
    log_ratio = segment_sum(gap, batch.tokens.owner(), batch.tokens.num_responses)
    known = log_ratio.isfinite()
    log_ratio = torch.where(known, log_ratio, torch.zeros_like(log_ratio))
    weights = importance_weights(log_ratio)
    items = {_MEAN: weights, _SQUARE: weights.square(), "importance/kl": -log_ratio}
    window.add_all(items, known)


def finish_importance(values: dict[str, float]) -> None:
    """Effective sample size and chi-square of a logging window, from the means of the weights.

    Args:
        values: means of the window by name; changed in place.
    """
    square = values.pop(_SQUARE, None)
    if square is not None:
        values["importance/ess"] = effective_share(values[_MEAN], square)
        values["importance/chi_square"] = chi_square(values[_MEAN], square)
