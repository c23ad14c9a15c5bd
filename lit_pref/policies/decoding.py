"""How a Hugging Face causal LM is decoded: with shared prompts, or with a cache of its own.

Shapes: ``R`` rows (prompts x copies), ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_pref.engine.forward import packed_inputs
from lit_pref.engine.kv_cache import SharedCache
from lit_pref.engine.layout import pack
from lit_pref.transfer import moved, sent
from lit_pref.types import FlatTokens

__all__ = [
    "CacheState",
    "enter_shared",
    "keep_rows",
    "prefill_padded",
    "logits_of_row",
    "rows_that_fit",
    "rows_within",
    "step",
    "step_shared",
]

PREFILL_TOKENS = 16384
"""Prompt tokens that go through the model at once; bounds the memory of their activations."""

MEMORY = 2**30
"""Bytes that decoding may take where the number of rows is not given."""

LEAST_ROWS, MOST_ROWS = 32, 512

Run = Callable[[Callable[[Any], Any]], Any]
"""Calls what it is given with the model, through the policy's hooks."""


@dataclass(slots=True)
class CacheState:
    """The cache of transformers and what is needed to extend it.

    Attributes:
        cache: one entry per row.
        mask: [R, L] 1 where a cached token is real (prompts are padded on the left).
        position: [R] position of the next token in its own sequence.
    """

    cache: Any
    mask: Tensor
    position: Tensor


def enter_shared(
    run: Run,
    cache: SharedCache,
    prompts: Sequence[Sequence[int]],
    copies: int,
    device: torch.device,
) -> Tensor:
    """Compute new prompts, each once and without padding; their rows follow those of the cache.

    Args:
        run: calls a function with the model.
        cache: what is extended.
        prompts: token ids.
        copies: rows of each prompt.
        device: of the model.

    Returns:
        [len(prompts) * copies, V] next-token logits.
    """
    logits, at = [], 0
    for part in _parts([len(p) for p in prompts]):
        some = prompts[at : at + part]
        at += part
        lengths = [len(p) for p in some]
        # One response of one token each: its row is the prompt's last token.
        tokens = FlatTokens(
            prompt_ids=sent([i for p in some for i in p], device, torch.long),
            prompt_lengths=lengths,
            response_ids=torch.zeros(part, device=device, dtype=torch.long),
            lengths=[1] * part,
            prompt_of=list(range(part)),
        )
        layout = pack(tokens)
        layout.segments = [(n, []) for n in lengths]
        cache.enter(lengths, copies)
        inputs = {**packed_inputs(layout), "logits_to_keep": layout.rows, "lit_pref_cache": cache}
        logits.append(run(lambda model, inputs=inputs: model(**inputs)).logits[0])  # type: ignore[misc]
    return torch.cat(logits).repeat_interleave(copies, 0)


def _parts(lengths: Sequence[int]) -> list[int]:
    """Numbers of neighbouring prompts that fit into one forward."""
    out: list[int] = []
    held = 0
    for n in lengths:
        if not out or held + n > PREFILL_TOKENS:
            out.append(0)
            held = 0
        out[-1] += 1
        held += n
    return out


def step_shared(run: Run, cache: SharedCache, token_ids: Tensor) -> Tensor:
    """[R, V] next-token logits after one more token of each row."""

    def forward(token_ids: Tensor, position: Tensor) -> Tensor:
        inputs = {
            "input_ids": token_ids[None],
            "position_ids": position[None],
            # passed through untouched; see ``packed_inputs``
            "attention_mask": torch.zeros(1, 1, 1, 1, device=token_ids.device),
            "use_cache": False,
            "lit_pref_cache": cache,
        }
        logits: Tensor = run(lambda model: model(**inputs)).logits[0]
        return logits

    if cache.recorded is not None:
        replayed = cache.recorded(cache, forward, token_ids)
        if replayed is not None:
            return replayed
    logits = forward(token_ids, cache.begin(token_ids.device))
    cache.end()
    return logits


def rows_that_fit(model: Any, tokens: int) -> int:
    """Rows whose keys, values and logits take about ``MEMORY`` or half as much as the weights.

    Wide batches decode more tokens a second; beyond ``MOST_ROWS`` that gains little.

    Args:
        model: a Hugging Face causal LM.
        tokens: kept for each row.
    """
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    weight = next(model.parameters())
    single = 4 if weight.device.type == "cpu" else weight.element_size()
    token = 2 * config.num_hidden_layers * keys * size * single
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return rows_within(weights, tokens * token + logits_of_row(config.vocab_size))


def logits_of_row(vocab_size: int) -> int:
    """Bytes of a row's logits, its probabilities, and one of them on the way."""
    return 3 * 4 * vocab_size


def rows_within(weights: int, row: int) -> int:
    """Rows that are decoded at a time, from the bytes of the weights and those that a row takes."""
    fitting = max(MEMORY, weights // 2) // row
    return max(min(fitting, MOST_ROWS), LEAST_ROWS)


def prefill_padded(
    run: Run,
    prompts: Sequence[Sequence[int]],
    copies: int,
    device: torch.device,
    pad_id: int,
) -> tuple[Tensor, CacheState]:
    """The same for any model: prompts padded on the left, the cache repeated for the copies."""
    from transformers import DynamicCache

    width = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[i, width - len(prompt) :] = 1
    ids, mask = moved(ids, device), moved(mask, device)
    out = run(
        lambda model: model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            past_key_values=DynamicCache(config=model.config),
            use_cache=True,
            logits_to_keep=1,
        )
    )
    cache = out.past_key_values
    logits, position = out.logits[:, -1], mask.sum(-1)
    if copies > 1:
        cache.batch_repeat_interleave(copies)
        logits = logits.repeat_interleave(copies, 0)
        mask = mask.repeat_interleave(copies, 0)
        position = position.repeat_interleave(copies, 0)
    return logits, CacheState(cache, mask, position)


def step(run: Run, token_ids: Tensor, state: CacheState) -> tuple[Tensor, CacheState]:
    """One more token of each row through the cache of transformers."""
    mask = torch.cat([state.mask, state.mask.new_ones(len(token_ids), 1)], 1)
    out = run(
        lambda model: model(
            input_ids=token_ids[:, None],
            attention_mask=mask,
            position_ids=state.position[:, None],
            past_key_values=state.cache,
            use_cache=True,
        )
    )
    return out.logits[:, -1], CacheState(out.past_key_values, mask, state.position + 1)


def keep_rows(state: CacheState, rows: Tensor) -> CacheState:
    """These rows alone."""
    there = moved(rows, state.mask.device)
    state.cache.batch_select_indices(there)
    return CacheState(state.cache, state.mask[there], state.position[there])
