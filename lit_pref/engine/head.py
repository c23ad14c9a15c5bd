"""Log-probabilities from hidden states, only where a response token is predicted.

Shapes: ``T`` response tokens, ``H`` hidden, ``V`` vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["HeadForm", "declared_form", "head_bytes", "head_stats", "logit_stats"]

BUDGET_BYTES = 512 * 1024**2
"""Float32 logits up to this size are kept for backward; larger ones are made again, in chunks."""
CHUNKS = 8
"""A chunk of logits is this part of the budget; at the peak two or three of them are alive."""
SUMMED = 16
"""Chunks whose gradients of half-precision weights are summed apart.

Each sum is rounded to 8 or 11 bits: of hundreds of them in a row the later ones would be lost.
"""


class HeadForm(NamedTuple):
    """What a model does to the product of hidden states and output weights.

    Attributes:
        scale: logits are the product times this (Cohere, Granite).
        cap: then ``cap * tanh(logits / cap)`` (Gemma 2, arXiv 2408.00118); None for no cap.
    """

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, product: Tensor) -> Tensor:
        if self.scale != 1.0:
            product = product * self.scale
        return product if self.cap is None else torch.tanh(product / self.cap) * self.cap

    def pull_back(self, grad: Tensor, logits: Tensor, *, in_place: bool) -> Tensor:
        """Gradient of the product from that of the logits, written over it.

        Args:
            grad: of the logits.
            logits: after this form.
            in_place: ``logits`` may be written over as well.
        """
        if self.cap is not None:
            slope = logits if in_place else logits.clone()
            grad.mul_(slope.div_(self.cap).square_().neg_().add_(1.0))
        return grad if self.scale == 1.0 else grad.mul_(self.scale)


def declared_form(config: Any) -> HeadForm:
    """The form that a transformers config declares; a probe tells whether the model keeps to it."""
    config = config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return HeadForm(scale, None if cap is None else float(cap))


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
    the precision of the weights, or with ``keep=False`` none. Chunks are written into buffers that
    are made once: an allocator that keeps freed memory would otherwise spread out.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        form: HeadForm,
        chunk: int,
        keep: bool,
        entropy: bool,
        sum_squares: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        count, wide = len(targets), _wide(weight.dtype)
        kept = hidden.new_empty(count if keep else 0, len(weight))
        made = hidden.new_empty(0 if keep else min(chunk, count), len(weight))
        apart = keep or entropy or weight.dtype != wide  # the logits are still wanted as they are
        work = hidden.new_empty(min(chunk, count) if apart else 0, len(weight), dtype=wide)
        logps, norms = (hidden.new_empty(count, dtype=wide) for _ in range(2))
        ent = torch.empty_like(norms) if entropy else None
        squares = torch.empty_like(norms) if sum_squares else None
        for start in range(0, count, chunk):
            part = slice(start, min(start + chunk, count))
            size = part.stop - start
            logits = kept[part] if keep else made[:size]
            _product(hidden[part], weight, bias, form, out=logits)
            logps[part] = logits.gather(-1, targets[part, None])[:, 0]
            masses = work[:size].copy_(logits) if apart else logits
            largest = masses.amax(-1)
            total = masses.sub_(largest[:, None]).exp_().sum(-1)
            norms[part] = largest + total.log()
            if ent is not None:
                below = logits.to(wide) - largest[:, None]  # small numbers cancel less
                ent[part] = total.log() - _row_products(masses, below) / total
            if squares is not None:
                squares[part] = _row_products(masses, masses) / total.square()
        logps -= norms
        ctx.save_for_backward(hidden, weight, bias, targets, norms, ent, squares, kept)
        ctx.chunk, ctx.form, ctx.keep = chunk, form, keep
        return logps, ent, squares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, norms, ent, squares, kept = ctx.saved_tensors
        form, chunk, count = ctx.form, ctx.chunk, len(targets)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        has_bias = bias is not None and ctx.needs_input_grad[2]
        grad_bias = torch.zeros_like(bias, dtype=norms.dtype) if has_bias else None
        half = weight.dtype != norms.dtype and count > SUMMED * chunk
        some = torch.zeros_like(weight) if half and grad_weight is not None else None
        apart = ctx.keep or form.cap is not None or ent is not None or weight.dtype != norms.dtype
        made = hidden.new_empty(0 if ctx.keep else min(chunk, count), len(weight))
        work = norms.new_empty(min(chunk, count) if apart else 0, len(weight))
        for start in range(0, count, chunk):
            part = slice(start, min(start + chunk, count))
            size = part.stop - start
            logits = kept[part] if ctx.keep else made[:size]
            if not ctx.keep:
                _product(hidden[part], weight, bias, form, out=logits)
            probs = work[:size].copy_(logits) if apart else logits
            probs.sub_(norms[part, None]).exp_()
            grad = _grad_of_logits(
                probs,
                logits,
                targets[part],
                norms[part, None],
                [None if g is None else g[part, None] for g in grads],
                [None if s is None else s[part, None] for s in (ent, squares)],
            )
            grad = form.pull_back(grad, logits, in_place=not ctx.keep).to(weight.dtype)
            torch.mm(grad, weight, out=grad_hidden[part])
            if grad_weight is not None and some is not None:
                some.addmm_(grad.T, hidden[part])
                if part.stop == count or part.stop % (SUMMED * chunk) == 0:
                    grad_weight += some
                    some.zero_()
            elif grad_weight is not None:
                grad_weight.addmm_(grad.T, hidden[part])
            if grad_bias is not None:
                grad_bias += grad.sum(0, dtype=norms.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, *[None] * 6


def _product(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, form: HeadForm, *, out: Tensor
) -> None:
    """``form(hidden @ weight.T + bias)`` into ``out``."""
    torch.mm(hidden, weight.T, out=out)
    if bias is not None:
        out += bias
    if form.scale != 1.0:
        out *= form.scale
    if form.cap is not None:
        out.div_(form.cap).tanh_().mul_(form.cap)


def _row_products(a: Tensor, b: Tensor) -> Tensor:
    """[t] sums of the products of two [t, V], without a third."""
    with torch.autocast(a.device.type, enabled=False):  # it would round both to half precision
        return (a[:, None] @ b[:, :, None])[:, 0, 0]


def _grad_of_logits(
    probs: Tensor,
    logits: Tensor,
    targets: Tensor,
    norms: Tensor,
    grads: list[Tensor | None],
    values: list[Tensor | None],
) -> Tensor:
    """[t, V] gradient, where d logp_y = e_y - p, d H = -p (log p + H), d S = 2 p (p - S).

    It is written over ``probs``.
    """
    of_logps, of_entropy, of_squares = grads
    entropy, squares = values
    assert of_logps is not None
    if entropy is None and squares is None:
        probs.mul_(-of_logps)
    else:
        factor = (-of_logps).expand_as(probs).contiguous()
        if of_entropy is not None and entropy is not None:
            factor -= (logits - norms + entropy).mul_(of_entropy)
        if of_squares is not None and squares is not None:
            factor += (probs - squares).mul_(2 * of_squares)
        probs.mul_(factor)
    return probs.scatter_add_(1, targets[:, None], of_logps.to(probs.dtype))


def head_stats(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    entropy: bool = False,
    sum_squares: bool = False,
    form: HeadForm = HeadForm(),  # noqa: B008  (immutable)
    budget_bytes: int = BUDGET_BYTES,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``logit_stats`` of ``form(hidden @ weight.T + bias)``, within a memory budget.

    Args:
        hidden: [T, H] hidden states that predict the targets.
        weight: [V, H] of the output head.
        bias: [V] or None.
        targets: [T] token ids.
        entropy: see ``logit_stats``.
        sum_squares: see ``logit_stats``.
        form: what is done to the product.
        budget_bytes: float32 logits up to this size are kept for backward; beyond it they are
            made again, chunk by chunk. See ``head_bytes`` for what that needs.

    Returns:
        See ``logit_stats``.
    """
    row = weight.shape[0] * 4
    size = len(targets) * row
    if size <= budget_bytes // CHUNKS:
        logits = form(F.linear(hidden, weight, bias))
        return logit_stats(logits, targets, entropy=entropy, sum_squares=sum_squares)
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    chunk = _chunk(row, budget_bytes)
    keep = size <= budget_bytes and torch.is_grad_enabled()
    return _ChunkedHead.apply(
        hidden, weight, bias, targets, form, chunk, keep, entropy, sum_squares
    )


def head_bytes(
    tokens: int,
    vocab_size: int,
    *,
    grad: bool = True,
    half_table: int = 0,
    budget_bytes: int = BUDGET_BYTES,
) -> int:
    """Memory of logits at the peak of ``head_stats`` and its backward, weights' gradients apart.

    Args:
        tokens: response tokens of one forward.
        vocab_size: V.
        grad: whether a backward follows.
        half_table: bytes of the output layer if it trains in half precision, else 0.
        budget_bytes: see ``head_stats``.

    Returns:
        Bytes: kept logits, three tensors of the size of a chunk beside them, and the sum of some
        chunks' gradients where many of them would lose precision (``SUMMED``).
    """
    size = tokens * vocab_size * 4
    kept = size if grad and size <= budget_bytes else 0
    apart = half_table if grad and tokens > SUMMED * _chunk(vocab_size * 4, budget_bytes) else 0
    return kept + apart + 3 * min(size, max(budget_bytes // CHUNKS, vocab_size * 4))


def _chunk(row: int, budget_bytes: int) -> int:
    """Tokens of a chunk, from the bytes of a row of float32 logits."""
    return max(budget_bytes // (CHUNKS * row), 1)
