"""Attention over a packed row in which responses share their prompt.

Registered with transformers' public attention interface under ``NAME``. With a cache and no layout
it attends from the newest token of every row; with neither it is the ordinary scaled dot-product
attention, so padded batches go through it unchanged.

Shapes: ``n`` heads, ``L`` packed tokens, ``d`` head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from lit_pref.engine.fused import Segments, fused_attention, fused_row, is_usable
from lit_pref.engine.layout import PackedLayout

if TYPE_CHECKING:
    from lit_pref.engine.kv_cache import SharedCache

__all__ = ["NAME", "register"]

NAME = "lit_pref_shared_prompt"

MANY_CALLS = 8
"""From so many calls per layer on, one kernel for the whole row is tried instead."""


def register() -> None:
    """Make ``NAME`` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(NAME, shared_prompt_attention)
    AttentionMaskInterface.register(NAME, AttentionMaskInterface()["sdpa"])


def shared_prompt_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    lit_pref_layout: PackedLayout | None = None,
    lit_pref_cache: SharedCache | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls, [1, n, L, d] in, [1, L, n, d] out."""
    window = sliding_window or 0
    if lit_pref_cache is not None:
        if lit_pref_layout is None:
            out = lit_pref_cache.attend(
                query, key, value, window=window, scaling=scaling, softcap=softcap, sinks=s_aux
            )
            return out, None
        lit_pref_cache.store(key, value)
    if lit_pref_layout is None and softcap is None and s_aux is None:
        ordinary = AttentionInterface()["sdpa"]
        return ordinary(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotary leaves fp32 under autocast
    if lit_pref_layout is None:
        mask = _dense_mask(query, key, attention_mask)
        out = _attend(query, *_repeated(query, key, value), mask, scaling, softcap, s_aux)
        return out.transpose(1, 2).contiguous(), None
    lit_pref_layout.windows.add(window)
    out = _packed(query, key, value, lit_pref_layout, window, scaling, softcap, s_aux)
    return out.transpose(1, 2).contiguous(), None


def _repeated(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values once for each head."""
    repeat = query.shape[1] // key.shape[1]
    if repeat == 1:
        return key, value
    return key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)


def _packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    window: int,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """All at once where the device has a kernel for it, else one call per response."""
    layout.calls += 1
    longest = max(p + max(r, default=0) for p, r in layout.segments)
    if window >= longest:
        window = 0

    def one_by_one(q: Tensor, k: Tensor, v: Tensor, segments: Segments, window: int) -> Tensor:
        row = PackedLayout(layout.input_ids, layout.position_ids, segments, layout.rows)
        return _one_by_one(q, k, v, row, window, scaling, softcap, sinks)

    kind: dict[str, Any] = {"scaling": scaling, "softcap": softcap, "sinks": sinks}
    calls = sum(1 + len(responses) for _, responses in layout.segments)
    if calls >= MANY_CALLS and is_usable(
        query, key, value, window=window, reference=one_by_one, **kind
    ):
        if window not in layout.fused:
            layout.fused[window] = fused_row(layout.segments, window, query.device)
        return fused_attention(query, key, value, layout.fused[window], **kind)
    return _one_by_one(query, key, value, layout, window, scaling, softcap, sinks)


def _one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    window: int,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    key, value = _repeated(query, key, value)
    # One split per tensor: separate slices would each cost an L-long zero tensor in backward.
    sizes = [n for prompt, responses in layout.segments for n in (prompt, *responses)]
    queries, keys, values = query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2)
    outs, at = [], 0
    for prompt, responses in layout.segments:
        k_prompt, v_prompt = keys[at], values[at]
        mask = layout.mask(0, prompt, window, query.device) if window else None
        outs.append(_attend(queries[at], k_prompt, v_prompt, mask, scaling, softcap, sinks))
        for j, length in enumerate(responses, start=at + 1):
            if length == 0:
                outs.append(queries[j])
                continue
            mask = layout.mask(prompt, length, window, query.device)
            k, v = torch.cat([k_prompt, keys[j]], 2), torch.cat([v_prompt, values[j]], 2)
            outs.append(_attend(queries[j], k, v, mask, scaling, softcap, sinks))
        at += 1 + len(responses)
    return torch.cat(outs, 2)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Causal when no mask is given; soft-capped scores and attention sinks are done by hand."""
    if softcap is None and sinks is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(2, 3)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        length = query.shape[2]
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        extra = sinks.reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        scores = torch.cat([scores, extra.to(scores.dtype)], -1)
    weights = scores.float().softmax(-1).to(value.dtype)
    return weights[..., : key.shape[2]] @ value


def _dense_mask(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Boolean mask of an ordinary call: the given one, else causal aligned to the end."""
    if mask is not None:
        return mask if mask.dtype == torch.bool else mask >= 0
    rows, columns = query.shape[2], key.shape[2]
    ones = torch.ones(rows, columns, dtype=torch.bool, device=query.device)
    return ones.tril(columns - rows)
