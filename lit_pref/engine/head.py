"""Log-probabilities from hidden states, only where a response token is predicted.

Shapes: ``T`` response tokens, ``H`` hidden, ``V`` vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["head_stats", "logit_stats"]

BUDGET_BYTES = 512 * 1024**2
"""Float32 logits up to this size are kept for backward; larger ones are made again, in chunks."""


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


class _ChunkedHead(torch.autograd.Function):
    """Statistics of logits of which only a chunk at a time is in float32.

    Autograd would hold about five tensors of the size of the logits; this holds one of them, in
    the precision of the weights, or with ``keep=False`` none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk: int,
        keep: bool,
        entropy: bool,
        sum_squares: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        kept, found = [], []
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            logits = F.linear(h, weight, bias)
            found.append(logit_stats(logits, t, entropy=entropy, sum_squares=sum_squares))
            if keep:
                kept.append(logits)
        logps, ent, squares = (
            None if column[0] is None else torch.cat(column) for column in zip(*found, strict=True)
        )
        ctx.save_for_backward(hidden, weight, bias, targets, ent, squares, *kept)
        ctx.chunk = chunk
        assert logps is not None
        return logps, ent, squares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, entropy, squares, *kept = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        has_bias = bias is not None and ctx.needs_input_grad[2]
        grad_bias = torch.zeros_like(bias) if has_bias else None
        for n, start in enumerate(range(0, len(targets), ctx.chunk)):
            part = slice(start, start + ctx.chunk)
            logits = kept[n] if kept else F.linear(hidden[part], weight, bias)
            grad = _grad_of_logits(
                logits,
                targets[part],
                [None if g is None else g[part, None] for g in grads],
                [None if s is None else s[part, None] for s in (entropy, squares)],
            ).to(weight.dtype)
            grad_hidden[part] = grad @ weight
            if grad_weight is not None:
                grad_weight.addmm_(grad.T, hidden[part])
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None


def _grad_of_logits(
    logits: Tensor, targets: Tensor, grads: list[Tensor | None], values: list[Tensor | None]
) -> Tensor:
    """[t, V] gradient, where d logp_y = e_y - p, d H = -p (log p + H), d S = 2 p (p - S)."""
    of_logps, of_entropy, of_squares = grads
    entropy, squares = values
    assert of_logps is not None
    logits = logits.to(_wide(logits.dtype))
    if entropy is None and squares is None:
        out = logits.softmax(-1).mul_(-of_logps)
    else:
        log_probs = logits.log_softmax(-1)
        probs = log_probs.exp()
        out = probs * -of_logps
        if of_entropy is not None and entropy is not None:
            out -= log_probs.add_(entropy).mul_(probs).mul_(of_entropy)
        if of_squares is not None and squares is not None:
            out += (probs - squares).mul_(probs).mul_(2 * of_squares)
    return out.scatter_add_(1, targets[:, None], of_logps.to(out.dtype))


def head_stats(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    entropy: bool = False,
    sum_squares: bool = False,
    budget_bytes: int = BUDGET_BYTES,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``logit_stats`` of ``hidden @ weight.T + bias``, within a memory budget.

    Args:
        hidden: [T, H] hidden states that predict the targets.
        weight: [V, H] of the output head.
        bias: [V] or None.
        targets: [T] token ids.
        entropy: see ``logit_stats``.
        sum_squares: see ``logit_stats``.
        budget_bytes: float32 logits up to this size are kept for backward; beyond it they are
            made again, chunk by chunk. At the peak about as much again is used.

    Returns:
        See ``logit_stats``.
    """
    row = weight.shape[0] * 4
    size = len(targets) * row
    if size <= budget_bytes // 8:
        logits = F.linear(hidden, weight, bias)
        return logit_stats(logits, targets, entropy=entropy, sum_squares=sum_squares)
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    chunk = max(budget_bytes // (4 * row), 1)
    keep = size <= budget_bytes and torch.is_grad_enabled()
    return _ChunkedHead.apply(hidden, weight, bias, targets, chunk, keep, entropy, sum_squares)
