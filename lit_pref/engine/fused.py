"""The whole packed row in one attention kernel, on a GPU.

A call per response costs a launch each, in every layer. FlexAttention (arXiv 2412.05496) takes the
row at once: each query says which two ranges of keys it sees, and blocks of keys that none of a
block's queries sees are skipped.

A kernel is compiled for the device at hand, so none is trusted before it was tried: values and
gradients of two small rows against one call per response, once for each kind of layer.

Shapes: ``L`` packed tokens, ``b`` blocks of 128 of them, ``n`` heads, ``m`` key heads, ``d`` head
size.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_pref.transfer import moved

__all__ = ["DEVICES", "Segments", "fused_attention", "fused_row", "is_usable"]

log = logging.getLogger(__name__)

BLOCK = 128
"""Queries, and keys, that the kernel looks at together."""

DEVICES = {"cuda"}
"""Kinds of devices with a kernel that has a backward pass."""

Segments = list[tuple[int, list[int]]]
"""For each prompt its length and those of its responses, as ``PackedLayout.segments``."""

Reference = Callable[[Tensor, Tensor, Tensor, Segments, int], Tensor]

TRIALS: list[Segments] = [
    [(9, [5, 0, 3]), (1, [4])],
    [(1, [2]), (140, [1, 70, 33]), (20, [40])],
]
"""Rows within one block and over several; of two lengths, so that none is compiled in."""

_tried: dict[tuple[object, ...], bool] = {}


def fused_row(segments: Segments, window: int, device: torch.device) -> Any:
    """The ``BlockMask`` of a packed row.

    Args:
        segments: what the row consists of.
        window: most positions of its own sequence that a token sees, itself included; 0 for all.
        device: where the kernel runs.
    """
    from torch.nn.attention.flex_attention import BlockMask

    ranges = _ranges(segments, window)
    some, every = _blocks(*ranges)
    own, first, end = (moved(r.int(), device) for r in ranges)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        recent = (key >= own[query]) & (key <= query)
        return recent | ((key >= first[query]) & (key < end[query]))

    return BlockMask.from_kv_blocks(
        *_listed(some & ~every, device),
        *_listed(every, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(len(own), len(own)),
    )


def _ranges(segments: Segments, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Three [L]: query q sees keys own[q] to q, and first[q] to end[q] - 1 of its prompt."""
    own, first, end = [], [], []
    place = 0
    for prompt, responses in segments:
        begin = place
        # before: how many tokens of the prompt come first
        for before, length in ((0, prompt), *((prompt, n) for n in responses)):
            at = torch.arange(length)
            hidden = at + 1 - window if window else torch.zeros_like(at)
            own.append(place + hidden.clamp(min=0))
            first.append(begin + (hidden + before if window else hidden).clamp(0, before))
            end.append(torch.full_like(at, begin + before))
            place += length
    return torch.cat(own), torch.cat(first), torch.cat(end)


def _blocks(own: Tensor, first: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """[b, b] blocks of keys of which a block of queries sees something, and all.

    Every query votes for the blocks that its two ranges touch, and for those that they fill.
    """
    length = len(own)
    count = -(-length // BLOCK)
    query = torch.arange(length)
    touched, filled = (torch.zeros(count, count + 1, dtype=torch.long) for _ in range(2))

    def vote(votes: Tensor, low: Tensor, high: Tensor) -> None:
        some = low < high
        rows, ones = query[some] // BLOCK, torch.ones_like(query[some])
        votes.index_put_((rows, low[some]), ones, accumulate=True)
        votes.index_put_((rows, high[some]), -ones, accumulate=True)

    for low, high in ((own, query + 1), (first, end)):
        vote(touched, low // BLOCK, torch.where(low < high, -(-high // BLOCK), 0))
        vote(filled, -(-low // BLOCK), high // BLOCK)
    # The last block may hold fewer queries than a block has: then nothing fills it.
    return touched.cumsum(1)[:, :-1] > 0, filled.cumsum(1)[:, :-1] == BLOCK


def _listed(blocks: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """[1, 1, b] how many, and [1, 1, b, b] which ones first; the order that the kernel reads."""
    order = (~blocks).int().argsort(dim=1, stable=True)
    count = blocks.sum(1)
    listed = (moved(x.int().contiguous(), device) for x in (count, order))
    return tuple(x[None, None] for x in listed)  # type: ignore[return-value]


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row: Any,
    *,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of a whole packed row.

    Args:
        query: [1, n, L, d].
        key: [1, m, L, d]; each serves ``n / m`` heads.
        value: the same of values.
        row: what is seen, by ``fused_row``.
        scaling: of the scores; None for ``d ** -0.5``.
        softcap: bound of the scores, ``softcap * tanh(score / softcap)``.
        sinks: [n] scores of nothing, one per head.

    Returns:
        [1, n, L, d].
    """
    out = _kernel()(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=row,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options={"FORCE_USE_FLEX_ATTENTION": True},  # the one for short rows has limits
        **({} if sinks is None else {"return_aux": _with_totals()}),
    )
    if sinks is None:
        return out  # type: ignore[no-any-return]
    found, totals = out[0], out[1].lse  # [1, n, L] log of the sum of exponentials, float32
    share = torch.sigmoid(totals - sinks.view(1, -1, 1).float())  # of what is not nothing
    return (found * share[..., None].to(found.dtype)).to(value.dtype)


@functools.cache
def _kernel() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # Several models, precisions and kinds of layers share it; beyond a limit torch would go on
    # without a kernel, with all scores in memory.
    known = inspect.signature(torch.compile).parameters
    more: dict[str, Any] = {"recompile_limit": 64} if "recompile_limit" in known else {}
    return torch.compile(flex_attention, dynamic=True, **more)  # rows differ in length


@functools.cache
def _capped(softcap: float) -> Callable[..., Tensor]:
    """One function for each bound: a new one would be compiled again."""

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


def _with_totals() -> Any:
    from torch.nn.attention.flex_attention import AuxRequest

    return AuxRequest(lse=True)


# ---------------------------------------------------------------------- is it right here?


def is_usable(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: int,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
    reference: Reference,
) -> bool:
    """Whether the kernel does what one call per response does, for layers of this kind.

    Found out once for each device, precision, number and size of heads; no random state of the
    program is touched. That it is compiled, and what does not work, are lines of the log.

    Args:
        query: [1, n, L, d] of the layer at work; only its kind matters.
        key: [1, m, L, d].
        value: the same of values.
        window: see ``fused_row``.
        scaling: see ``fused_attention``.
        softcap: see ``fused_attention``.
        sinks: see ``fused_attention``.
        reference: attention of (query, key, value, segments, window), one call per response.
    """
    if query.device.type not in DEVICES:
        return False
    kind = (
        query.device, query.dtype, query.shape[1], query.shape[3], key.shape[1], value.shape[3],
        bool(window), softcap, sinks is None,
    )  # fmt: skip
    if kind not in _tried:
        log.info(
            "packed rows: compiling one attention kernel for layers of %d heads of %d, %s, on %s; "
            "it takes a while, once (model.forward=padded does without)",
            query.shape[1], query.shape[3], str(query.dtype).removeprefix("torch."), query.device,
        )  # fmt: skip
        near = min(window, 6)  # narrower than the rows of the trial
        options = {"scaling": scaling, "softcap": softcap}
        try:
            reason = _misfit(query, key, value, near, options, sinks, reference)
        except Exception as error:  # compilers fail in many ways
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if reason is not None:
            log.info("packed rows: one attention call per response (one for all: %s)", reason)
        _tried[kind] = reason is None
    return _tried[kind]


def _misfit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int,
    options: dict[str, Any],
    sinks: Tensor | None,
    reference: Reference,
) -> str | None:
    draw = torch.Generator().manual_seed(0)
    device, dtype = query.device, query.dtype
    for segments in TRIALS:
        length = sum(p + sum(r) for p, r in segments)

        def drawn(like: Tensor, length: int = length) -> Tensor:
            shape = (1, like.shape[1], length, like.shape[3])
            return torch.randn(shape, generator=draw).to(device, dtype)

        with torch.inference_mode(False), torch.enable_grad():
            q, k, v = given = [drawn(x).requires_grad_() for x in (query, key, value)]
            weights = drawn(value)[:, :1]
            row = fused_row(segments, window, device)
            own = None if sinks is None else sinks.detach().clone()
            results = []
            for out in (
                fused_attention(q, k, v, row, sinks=own, **options),
                reference(q, k, v, segments, window),
            ):
                total = (out.float() * weights.float()).sum()
                results.append([out, *torch.autograd.grad(total, given)])
        names = ("values", "gradients of queries", "of keys", "of values")
        for name, found, right in zip(names, *results, strict=True):
            gap = float((found.double() - right.double()).norm() / right.double().norm())
            limit = 16 * torch.finfo(dtype).eps
            if dtype == torch.float32 and _rounds_products(device):
                limit = 16 * torch.finfo(torch.float16).eps  # TF32 keeps as many bits
            if not gap <= limit:
                return f"{name} differ by {gap:.2g}, more than {limit:.2g}"
    return None


def _rounds_products(device: torch.device) -> bool:
    """Whether products of single precision may round their factors (TF32)."""
    if device.type != "cuda":
        return False
    asked = torch.backends.cuda.matmul.fp32_precision
    if asked == "none":
        return torch.get_float32_matmul_precision() != "highest"
    return asked != "ieee"
