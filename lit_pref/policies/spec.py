"""What a policy needs to know of a model, and small helpers of the model factories."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

__all__ = ["ModelSpec", "config_identity", "digest", "dropout_off", "eos_ids_of", "pad_id_of"]


@dataclass(kw_only=True)
class ModelSpec:
    """What a policy needs to know of a model before, and without, loading its weights.

    Attributes:
        name: how the user called it.
        tokenizer: its tokenizer; None for models of bare tokens (the bandit).
        eos_ids: tokens that end a response, the tokenizer's own first; may be empty.
        pad_id: the token that fills padded rows; never read as content.
        context_length: most tokens of prompt and response together.
        vocab_size: rows of the embedding, so every token id is below it.
        load: makes the model, on the CPU, dropout off; call ``train()`` or ``eval()`` yourself.
        fingerprint: the same for the same weights, else different.
        quantized: its weights cannot be trained, adapters on them can.
        policy: makes the policy, from this and ``initialise``; None for ``HFPolicy``.
        config: of the architecture, for plans; None for what is no language model.
        dtype: of the weights.
        weight_files: the files that ``load`` reads, once it has; may be empty.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase | None
    eos_ids: tuple[int, ...]
    pad_id: int
    context_length: int
    vocab_size: int
    load: Callable[[], PreTrainedModel]
    fingerprint: str
    quantized: bool = False
    policy: Callable[..., Any] | None = None
    config: PreTrainedConfig | None = None
    dtype: torch.dtype = torch.float32
    weight_files: Callable[[], Sequence[Path]] = tuple


def eos_ids_of(
    model_config: PreTrainedConfig,
    generation_config: GenerationConfig | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> tuple[int, ...]:
    """Every token that ends a response: the tokenizer's first, then the generation config's.

    The model config is asked only if there is no generation config, as in ``generate``: base
    configs often keep the end of a document where chat models end turns.
    """
    own = None if tokenizer is None else tokenizer.eos_token_id
    other = (generation_config or model_config).eos_token_id
    found = [own, *(other if isinstance(other, list | tuple) else [other])]
    return tuple(dict.fromkeys(int(i) for i in found if i is not None))


def pad_id_of(tokenizer: PreTrainedTokenizerBase | None, eos_ids: tuple[int, ...]) -> int:
    """The tokenizer's pad token, else its first end of sequence, else 0 (padding is masked)."""
    if tokenizer is not None and tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return eos_ids[0] if eos_ids else 0


def dropout_off(config: PreTrainedConfig) -> None:
    """Set every dropout rate of a config (and of its text part) to 0, in place."""
    for part in (config, config.get_text_config(decoder=True)):
        for name, value in vars(part).items():
            rate = "dropout" in name or name.endswith("pdrop") or name == "layerdrop"
            if rate and isinstance(value, float):
                setattr(part, name, 0.0)


def config_identity(fields: dict[str, Any]) -> str:
    """The fields of a config that say what the weights are, as one string."""
    aside = ("transformers_version", "_name_or_path")
    return json.dumps({k: v for k, v in fields.items() if k not in aside}, sort_keys=True)


def digest(*parts: object) -> str:
    """A short hash of parts whose ``repr`` is stable."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
