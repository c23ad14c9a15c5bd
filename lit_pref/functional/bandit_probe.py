"""Exact measurements of a policy of the 1-D bandit: nothing is sampled.

``P`` contexts, ``V`` actions, ``n`` responses per prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CLEAR_GAP", "PER_PROMPT", "bandit_probe", "best_of_probs"]

PER_PROMPT = 10
"""Responses per prompt of the paper's bandits."""
CLEAR_GAP = 0.2
"""Pairs whose rewards differ by more have a clear preference."""


def best_of_probs(probs: Tensor, rewards: Tensor, *, n: int) -> Tensor:
    """Distribution of the best of ``n`` independent draws.

    Ties are broken uniformly, as "the first of the best" does for draws in random order.

    Args:
        probs: [V] distribution of one draw.
        rewards: [V] reward of each action.
        n: number of draws.

    Returns:
        [V] probabilities.
    """
    levels, level = rewards.unique(return_inverse=True)
    mass = torch.zeros(len(levels), dtype=probs.dtype).index_add_(0, level, probs)
    power = mass.cumsum(0).clamp(0, 1) ** n
    chance = power.diff(prepend=power.new_zeros(1))
    return probs * (chance / mass.clamp(min=1e-300))[level]


def bandit_probe(logps: Tensor, *, rewards: Tensor, reference: Tensor) -> dict[str, float]:
    r"""Expectations of a policy over contexts.

    With :math:`h(y) = \log \pi(y) - \log \pi_{ref}(y)` the implicit reward (arXiv 2404.14367,
    section 2) and fresh responses from the reference:

    * ``reward``: :math:`E_\pi[r]`; ``kl``: :math:`KL(\pi\|\pi_{ref})`; ``kl_reverse``:
      :math:`KL(\pi_{ref}\|\pi)`; ``entropy``: all but the first in nats;
    * ``h_chosen``, ``h_rejected``: mean h of the best of 10 responses and of the other nine;
    * ``margin_clear``, ``margin_all``: mean difference of log-probs over pairs of two responses,
      the better first, whose rewards differ by more than 0.2, and over all pairs. It is the
      difference of :math:`\log \pi` itself, without the reference;
    * ``h_margin_clear``, ``h_margin_all``: the same of h.

    Args:
        logps: [P, V] float64 log-probs of the policy.
        rewards: [V] reward of each action.
        reference: [V] probabilities of the reference.

    Returns:
        Numbers by name, means over contexts.
    """
    probs, log_ref = logps.exp(), reference.log()
    mean_logp = logps.mean(0)  # everything below is linear in the log-probs
    h = mean_logp - log_ref
    best = best_of_probs(reference, rewards, n=PER_PROMPT)
    others = (PER_PROMPT * reference - best) / (PER_PROMPT - 1)
    out = {
        "reward": (probs @ rewards).mean(),
        "kl": (probs * (logps - log_ref)).sum(-1).mean(),
        "kl_reverse": (reference * (log_ref - mean_logp)).sum(),
        "entropy": -(probs * logps).sum(-1).mean(),
        "h_chosen": (best * h).sum(),
        "h_rejected": (others * h).sum(),
    }
    pair = reference[:, None] * reference[None, :]
    gap = rewards[:, None] - rewards[None, :]
    for name, least in (("clear", CLEAR_GAP), ("all", 0.0)):
        weight = pair * (gap > least)
        weight = weight / weight.sum()
        for prefix, value in (("", mean_logp), ("h_", h)):
            difference = value[:, None] - value[None, :]
            out[f"{prefix}margin_{name}"] = (weight * difference).sum()
    return {name: value.item() for name, value in out.items()}
