"""Token log-probabilities of a Hugging Face causal LM, packed or padded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lit_pref.engine.head import declared_form, head_stats, logit_stats
from lit_pref.engine.layout import PackedLayout, PaddedLayout, pack, pad, prefer_packed
from lit_pref.functional.partition import fitting
from lit_pref.types import FlatTokens, Refusal, TokenStats

__all__ = ["STATS", "Path", "hf_token_stats", "micro_batches", "packed_inputs"]

Path = Literal["packed", "padded", "auto"]
STATS = ("entropy", "sum_squares", "hidden", "final_hidden")
"""Optional statistics of a forward; only what is named is computed."""


def hf_token_stats(
    model: torch.nn.Module,
    tokens: FlatTokens,
    *,
    path: Path = "auto",
    stats: Iterable[str] = (),
    plain_head: bool = True,
    pad_id: int = 0,
) -> TokenStats:
    """One forward over prompts and responses.

    Args:
        model: a Hugging Face causal LM whose attention is ``lit_pref.engine.attention.NAME`` if
            the packed path is to be used.
        tokens: what to score; on the model's device.
        path: ``"packed"`` shares prompts and has no padding; ``"padded"`` works for any model.
        stats: names out of ``STATS``.
        plain_head: whether logits are exactly ``get_output_embeddings()(hidden)``, scaled and
            capped as the config declares; if not, the model computes its own logits, all at once.
        pad_id: id used for padding; never seen by a real token.

    Returns:
        Log-probs and statistics of the response tokens, flat, in the order of ``tokens``.

    Raises:
        Refusal: hidden states are asked of a model that does not show them.
    """
    wanted = set(stats)
    unknown = wanted - set(STATS)
    if unknown:
        raise ValueError(f"unknown statistics {sorted(unknown)}; choose from {', '.join(STATS)}")
    packed = prefer_packed(tokens) if path == "auto" else path == "packed"
    final = "final_hidden" in wanted
    layout: PackedLayout | PaddedLayout
    layout = pack(tokens, final=final) if packed else pad(tokens, pad_id=pad_id, final=final)
    if plain_head:
        flat = _hidden(model, layout)
        hidden = flat[layout.rows]
        out = _from_hidden(model, hidden, tokens.response_ids, wanted)
    else:
        seen: list[Tensor | None] = []
        out = _with_stats(_logits(model, layout, seen), tokens.response_ids, wanted)
        if not wanted & {"hidden", "final_hidden"}:
            return out
        if not seen or seen[0] is None:  # some models call the inner parts of their base
            raise Refusal(
                "expected a model that shows its last hidden states, for objectives with a value "
                f"or reward head, got {type(model).__name__}; use a model of another architecture"
            )
        flat = _flat(seen[0])
        hidden = flat[layout.rows]
    if "hidden" in wanted:
        out.hidden = hidden
    if final:
        out.final_hidden = flat[layout.final]
    return out


def _inputs(layout: PackedLayout | PaddedLayout) -> dict[str, object]:
    if isinstance(layout, PaddedLayout):
        return {"input_ids": layout.input_ids, "use_cache": False}
    return packed_inputs(layout)


def packed_inputs(layout: PackedLayout) -> dict[str, object]:
    """Arguments of a Hugging Face model for a packed row."""
    # A 4-D mask is passed through untouched; without it transformers would cut at position resets.
    dummy = torch.zeros(1, 1, 1, 1, device=layout.input_ids.device)
    return {
        "input_ids": layout.input_ids,
        "position_ids": layout.position_ids,
        "attention_mask": dummy,
        "use_cache": False,
        "lit_pref_layout": layout,
    }


def _hidden(model: Any, layout: PackedLayout | PaddedLayout) -> Tensor:
    """[positions, H] last hidden states."""
    return _flat(model.base_model(**_inputs(layout)).last_hidden_state)


def _flat(hidden: Tensor) -> Tensor:
    return hidden.reshape(-1, hidden.shape[-1])


def _logits(model: Any, layout: PackedLayout | PaddedLayout, seen: list[Tensor | None]) -> Tensor:
    """[T, V] logits by the model's own head; the last hidden states are left in ``seen``."""
    watch = model.base_model.register_forward_hook(
        lambda module, inputs, output: seen.append(getattr(output, "last_hidden_state", None))
    )
    try:
        if isinstance(layout, PackedLayout):
            return model(**_inputs(layout), logits_to_keep=layout.rows).logits[0]
        logits = model(**_inputs(layout)).logits
        return _flat(logits)[layout.rows]
    finally:
        watch.remove()


def _from_hidden(model: Any, hidden: Tensor, targets: Tensor, wanted: set[str]) -> TokenStats:
    head = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    logps, entropy, squares = head_stats(
        hidden,
        head.weight,
        bias,
        targets,
        entropy="entropy" in wanted,
        sum_squares="sum_squares" in wanted,
        form=declared_form(model.config),
    )
    return TokenStats(logps=logps, entropy=entropy, sum_squares=squares)


def _with_stats(logits: Tensor, targets: Tensor, wanted: set[str]) -> TokenStats:
    logps, entropy, squares = logit_stats(
        logits, targets, entropy="entropy" in wanted, sum_squares="sum_squares" in wanted
    )
    return TokenStats(logps=logps, entropy=entropy, sum_squares=squares)


def micro_batches(
    tokens: FlatTokens, budget: int | None, *, whole_prompts: bool = True
) -> Iterator[list[int]]:
    """Cut responses into micro-batches of at most ``budget`` tokens and nearly equal work.

    The largest comes first: memory that does not suffice shows at once.

    Args:
        tokens: the batch.
        budget: prompt and response tokens per micro-batch (None: one micro-batch). A group that
            is larger alone makes a micro-batch of its own.
        whole_prompts: keep the responses of one prompt together (pairs need it, and the shared
            prompt is computed once); otherwise cut between any two responses.

    Yields:
        Ascending response indices. Every response appears exactly once.
    """
    units = _units(tokens, whole_prompts)
    if budget is None:
        everything = sorted(i for unit, _ in units for i in unit)
        if everything:
            yield everything
        return
    for part in fitting([size for _, size in units], budget):
        yield sorted(i for n in part for i in units[n][0])


def _units(tokens: FlatTokens, whole_prompts: bool) -> Sequence[tuple[list[int], int]]:
    if not whole_prompts:
        return [
            ([i], tokens.prompt_lengths[p] + n)
            for i, (p, n) in enumerate(zip(tokens.prompt_of, tokens.lengths, strict=True))
        ]
    by_prompt: dict[int, list[int]] = {}
    for i, p in enumerate(tokens.prompt_of):
        by_prompt.setdefault(p, []).append(i)
    return [
        (unit, tokens.prompt_lengths[p] + sum(tokens.lengths[i] for i in unit))
        for p, unit in by_prompt.items()
    ]
