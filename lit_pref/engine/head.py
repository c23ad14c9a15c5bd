"""Log-probabilities from hidden states, only where a response token is predicted.

Shapes: ``T`` response tokens, ``H`` hidden, ``V`` vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["chunked_logps", "logit_stats"]

BUDGET_BYTES = 512 * 1024**2
"""Logits of this size are kept for backward; larger ones are made in chunks and recomputed."""


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Never below float32."""
    return torch.promote_types(dtype, torch.float32)


def logit_stats(
    logits: Tensor, targets: Tensor, *, entropy: bool = False, sum_squares: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Log-probability of each target, and optional statistics of each distribution.

    Args:
        logits: [T, V], any float type; computed in float32 or better.
        targets: [T] token ids.
        entropy: also return the entropy in nats.
        sum_squares: also return the sum of squared probabilities (used by WPO, 2406.11827).

    Returns:
        ([T] log-probs, [T] entropy or None, [T] sums or None).
    """
    logits = logits.to(_wide(logits.dtype))
    log_norm = logits.logsumexp(-1)
    logps = logits.gather(-1, targets[:, None])[:, 0] - log_norm
    ent = squares = None
    if entropy or sum_squares:
        log_probs = logits - log_norm[:, None]
        probs = log_probs.exp()
        if entropy:
            ent = -(probs * log_probs).sum(-1)
        if sum_squares:
            squares = probs.square().sum(-1)
    return logps, ent, squares


class _ChunkedLogps(torch.autograd.Function):
    """Log-probs without ever holding ``T x V``: logits are made again, chunk by chunk."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk):
        logps = hidden.new_empty(len(targets), dtype=_wide(hidden.dtype))
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            logps[part] = logit_stats(F.linear(hidden[part], weight, bias), targets[part])[0]
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.chunk = chunk
        return logps

    @staticmethod
    def backward(ctx, grad: Tensor):
        hidden, weight, bias, targets = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        has_bias = bias is not None and ctx.needs_input_grad[2]
        grad_bias = torch.zeros_like(bias) if has_bias else None
        for start in range(0, len(targets), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logits = F.linear(hidden[part], weight, bias)
            probs = logits.to(_wide(logits.dtype)).softmax(-1)
            grad_logits = probs.mul_(-grad[part, None])
            grad_logits.scatter_add_(1, targets[part, None], grad[part, None].to(probs))
            grad_logits = grad_logits.to(weight.dtype)
            grad_hidden[part] = grad_logits @ weight
            if grad_weight is not None:
                grad_weight.addmm_(grad_logits.T, hidden[part])
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None


def chunked_logps(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    budget_bytes: int = BUDGET_BYTES,
) -> Tensor:
    """[T] log-probs of ``targets`` under ``hidden @ weight.T + bias``, within a memory budget.

    Args:
        hidden: [T, H] hidden states that predict the targets.
        weight: [V, H] of the output head.
        bias: [V] or None.
        targets: [T] token ids.
        budget_bytes: float32 logits up to this size are kept; beyond it they are recomputed.
    """
    row = weight.shape[0] * 4
    if len(targets) * row <= budget_bytes:
        return logit_stats(F.linear(hidden, weight, bias), targets)[0]
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    chunk = max(budget_bytes // (4 * row), 1)
    return _ChunkedLogps.apply(hidden, weight, bias, targets, chunk)
