"""What a language model needs in memory, found without loading or making a single weight.

A forward over tensors that have shapes and no contents (torch's fake tensors) tells which
tensors autograd would keep, for any architecture, with checkpointing, adapters and autocast.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as hf_logging

from lit_pref.engine import attention
from lit_pref.engine.forward import Path, hf_token_stats
from lit_pref.engine.packed_weights import packed_bytes
from lit_pref.policies.lora import LoRA
from lit_pref.policies.prepare import recompute_activations, switch_dropout_off
from lit_pref.policies.spec import ModelSpec
from lit_pref.types import FlatTokens

__all__ = ["Footprint", "footprint"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Memory of a model, in bytes.

    Attributes:
        weights: all weights, shared ones once.
        trainable: those that train; their gradients need as much, AdamW's moments twice that.
        table: the output layer's weights.
        vocab_size: V.
        fixed: what a forward keeps for backward whatever its size (autocast's copies of weights).
        per_token: what it keeps for each prompt and response token.
        again: what one layer needs for each token, made again in backward with checkpointing and
            alive for a moment in a forward without gradient.
        cache_per_token: keys and values of one position in sampling.
        packed: copies of weights that decoding on a processor makes.
        half_table: the output layer's weights where they train with products in half precision.
    """

    weights: int
    trainable: int
    table: int
    vocab_size: int
    fixed: int
    per_token: float
    again: float
    cache_per_token: int
    packed: int = 0
    half_table: int = 0


def footprint(
    spec: ModelSpec,
    *,
    group: tuple[int, tuple[int, ...]],
    path: Path = "auto",
    lora: LoRA | None = None,
    gradient_checkpointing: bool = False,
    dtype: torch.dtype | None = None,
    autocast: torch.dtype | None = None,
) -> Footprint | None:
    """Measure a model on tensors without contents.

    Args:
        spec: of a language model; its ``config`` says the architecture.
        group: (prompt length, response lengths) of a usual group.
        path: of the forward; ``auto`` counts as packed.
        lora: adapters to train instead of the weights.
        gradient_checkpointing: activations are made again in backward.
        dtype: of the weights; None: as the spec says.
        autocast: precision of products under autocast.

    Returns:
        None where the architecture cannot be tried in this way, or is not known.
    """
    if spec.config is None or spec.quantized:
        return None
    padded: Path = "padded" if path == "padded" else "packed"
    layers = max(int(spec.config.get_text_config().num_hidden_layers), 1)
    tokens = group[0] + sum(group[1])
    try:
        with _without_contents():
            model = _model(spec, dtype or spec.dtype, lora)
            kept = _kept(model, group, spec.pad_id, 1, padded, autocast)
            fixed = 0
            if autocast is not None:  # half-precision copies of weights are kept once
                fixed = max(2 * kept - _kept(model, group, spec.pad_id, 2, padded, autocast), 0)
            again = (kept - fixed) / tokens / layers
            if gradient_checkpointing:
                recompute_activations(model)
                kept, fixed = _kept(model, group, spec.pad_id, 1, padded, autocast), 0
    except Exception as error:  # any architecture may do what needs contents
        log.debug("no memory plan for %s: %s: %s", spec.name, type(error).__name__, error)
        return None
    parts = list(model.parameters())
    head = model.get_output_embeddings()
    return Footprint(
        weights=_size(parts),
        trainable=_size(p for p in parts if p.requires_grad),
        table=_size([head.weight]) if head is not None and head.weight.requires_grad else 0,
        vocab_size=spec.vocab_size,
        fixed=fixed,
        per_token=(kept - fixed) / tokens,
        again=again,
        cache_per_token=_cache_per_token(spec.config, dtype or spec.dtype),
        packed=packed_bytes(model),
        half_table=_half_table(head, autocast),
    )


@contextlib.contextmanager
def _without_contents() -> Iterator[None]:
    """Tensors made here have shapes alone; random numbers of the process stay as they are."""
    from torch._subclasses import fake_tensor

    state, loud = torch.get_rng_state(), hf_logging.get_verbosity()
    quiet = logging.getLogger(fake_tensor.__name__)
    level = quiet.level
    try:
        hf_logging.set_verbosity_error()  # what it has to say it says when the model loads
        quiet.setLevel(logging.CRITICAL)
        with fake_tensor.FakeTensorMode():
            yield
    finally:
        torch.set_rng_state(state)
        hf_logging.set_verbosity(loud)
        quiet.setLevel(level)


def _model(spec: ModelSpec, dtype: torch.dtype, lora: LoRA | None) -> Any:
    attention.register()
    model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(spec.config), dtype=dtype)
    switch_dropout_off(model)
    if lora is not None:
        _adapt(model, lora)
    with contextlib.suppress(Exception):  # then it keeps its own, as in the run
        model.set_attn_implementation(attention.NAME)
    return model.train()


def _kept(
    model: Any,
    group: tuple[int, tuple[int, ...]],
    pad_id: int,
    copies: int,
    path: Path,
    autocast: torch.dtype | None,
) -> int:
    """Bytes that a forward over some groups keeps for backward, weights and head apart."""
    prompt, answers = group
    count = copies * len(answers)
    tokens = FlatTokens(
        prompt_ids=torch.zeros(copies * prompt, dtype=torch.long),
        prompt_lengths=[prompt] * copies,
        response_ids=torch.zeros(copies * sum(answers), dtype=torch.long),
        lengths=list(answers) * copies,
        prompt_of=[i // len(answers) for i in range(count)],
    )
    weights = {_place(p) for p in model.parameters()}
    seen: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if _place(tensor) not in weights:
            seen[_place(tensor)] = tensor  # held, so that no other takes its place
        return tensor

    mixed = contextlib.nullcontext() if autocast is None else torch.autocast("cpu", autocast)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), mixed:
        held = hf_token_stats(model, tokens, path=path, stats=("hidden",), pad_id=pad_id)
    size = sum(t.untyped_storage().nbytes() for t in seen.values())
    logits = 4 * sum(answers) * copies * model.get_output_embeddings().weight.shape[0]
    del held
    return max(size - logits, 0)  # logits are counted apart; this small forward keeps them once


class _Adapted(nn.Module):
    """A linear layer with an adapter: what ``peft`` makes of it, as far as memory goes."""

    def __init__(self, layer: Any, rank: int) -> None:
        super().__init__()
        self.layer = layer
        inner, outer = layer.weight.shape if isinstance(layer, Conv1D) else layer.weight.shape[::-1]
        self.down, self.up = nn.Linear(inner, rank, bias=False), nn.Linear(rank, outer, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x)) * 2.0


def _adapt(model: Any, lora: LoRA) -> None:
    model.requires_grad_(False)
    head = model.get_output_embeddings()
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    for name, layer in layers:
        last = name.rsplit(".", 1)[-1]
        wanted = lora.targets == "all-linear" or last in lora.targets
        if wanted and layer is not head:
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, last, _Adapted(layer, lora.rank))


def _half_table(head: Any, autocast: torch.dtype | None) -> int:
    if head is None or not head.weight.requires_grad:
        return 0
    dtype = autocast or head.weight.dtype
    return head.weight.numel() * dtype.itemsize if dtype.itemsize == 2 else 0


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _size(tensors: Iterable[Tensor]) -> int:
    places = {_place(t): t for t in tensors}
    return sum(t.numel() * t.element_size() for t in places.values())


def _cache_per_token(config: Any, dtype: torch.dtype) -> int:
    config = config.get_text_config()
    heads = int(config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    shared = int(getattr(config, "num_key_value_heads", None) or heads)
    return 2 * int(config.num_hidden_layers) * shared * width * dtype.itemsize
