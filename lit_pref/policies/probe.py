"""What a freshly loaded model supports, found out by trying it on a few tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_pref.engine import attention
from lit_pref.engine.forward import Path, hf_token_stats, packed_inputs
from lit_pref.engine.head import declared_form
from lit_pref.engine.kv_cache import SharedCache
from lit_pref.engine.layout import pack
from lit_pref.policies.decoding import enter_shared, step_shared
from lit_pref.policies.spec import ModelSpec
from lit_pref.types import FlatTokens

__all__ = ["decoding_misfit", "head_is_plain", "packed_misfit"]

LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers whose reach the packed attention knows."""

SINGLE_ROUNDINGS, HALF_ROUNDINGS = 64, 4
"""Largest relative difference of states and log-probs, in units of the precision's rounding error.

Right rows differ by up to 6 units in single and 1.3 in half precision (SmolLM2, 30 layers, CPU;
random models of 25 architectures by less). With siblings in sight the difference is 5 to 90 %, with
shifted positions 0.03 % at the least (random Gemma) and 7 % (SmolLM2).
"""

SINGLE_OF_GRADIENTS, HALF_OF_GRADIENTS = 1024, 24
"""The same of a gradient.

Right ones differ by 53 units in single and 9 in half precision (SmolLM2), and by up to 291 and 8 in
random models of 32 layers with tripled weights; with responses whose loss does not reach their
prompt the difference is 40 % and more.
"""


def packed_misfit(model: Any, spec: ModelSpec, *, plain_head: bool) -> str | None:
    """Switch a model to packed attention; say why it does not work, or None where it does.

    Args:
        model: a Hugging Face causal LM; its attention is left as it was where packing fails.
        spec: of the model.
        plain_head: see ``hf_token_stats``.
    """
    attention.register()
    try:
        model.set_attn_implementation(attention.NAME)
        reason = _reach(model) or _difference(model, spec, plain_head)
    except Exception as error:  # any architecture may refuse in its own way
        reason = f"{type(error).__name__}: {error}"
    if reason is not None:
        _restore_attention(model)
    return reason


def _restore_attention(model: Any) -> None:
    """Back to an attention of transformers' own."""
    try:
        model.set_attn_implementation("sdpa")
    except ValueError:  # the architecture has no such kernel
        model.set_attn_implementation("eager")


def _reach(model: Any) -> str | None:
    """Layers that see less than a few tokens can show, such as chunks of thousands."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    other = sorted(kinds - LAYERS)
    return f"it has layers of type {', '.join(other)}" if other else None


def _window(model: Any) -> int:
    """Positions that its sliding layers see; 0 where none slides."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds and "sliding_attention" not in kinds:
        return 0
    return getattr(config, "sliding_window", None) or 0


@contextlib.contextmanager
def _narrowed(model: Any, window: int) -> Iterator[None]:
    """Sliding windows of a model are at most this wide inside, so that few tokens pass them."""
    modules = list(model.modules())
    configs = [model.config.get_text_config(), *(getattr(m, "config", None) for m in modules)]
    held = {
        id(holder): (holder, wide)
        for holder in (*configs, *modules)
        if isinstance(wide := vars(holder).get("sliding_window") if holder else None, int)
        and wide > window
    }
    try:
        for holder, _ in held.values():
            holder.sliding_window = window
        yield
    finally:
        for holder, wide in held.values():
            holder.sliding_window = wide


def _difference(model: Any, spec: ModelSpec, plain_head: bool) -> str | None:
    """Compare a packed and a padded forward, and a gradient, on a small batch."""
    tokens = _tokens(spec, model)
    window = _window(model)
    narrow = min(window, _beyond(tokens))
    for width in dict.fromkeys((window, narrow)):
        with torch.no_grad(), _narrowed(model, width):
            layout = pack(tokens)
            model(**packed_inputs(layout), logits_to_keep=1)
        if layout.calls == 0:
            return "it did not call the packed attention"
        if width and width not in layout.windows:
            return f"its window of {window} did not reach the packed attention"
    witness = _witness(model)
    dtype = next(model.parameters()).dtype
    with _narrowed(model, narrow):
        packed, padded = (
            _measured(model, spec, tokens, path, plain_head, witness)
            for path in ("packed", "padded")
        )
    for name, right in padded.items():
        if name == "gradient" and not right.isfinite().all():
            continue  # beyond the precision, however it is computed
        reason = _beyond_rounding(name, packed[name], right, dtype)
        if reason is not None:
            return reason
    return None


def _beyond(tokens: FlatTokens) -> int:
    """A window that the longest prompt passes."""
    return max(max(tokens.prompt_lengths) - 1, 1)


def _witness(model: Any) -> nn.Parameter | None:
    """The smallest weight of the first layer that trains: all attention is on its gradient's way.

    An adapter's A has no gradient while its B is zero.
    """
    found = []
    for name, p in model.named_parameters():
        parts = name.split(".")
        first = next((part for part in parts if part.isdigit()), None) == "0"
        if first and parts[-1] == "weight" and "lora_A" not in parts and p.requires_grad:
            found.append(p)
    witness = min(found, key=lambda p: p.numel(), default=None)
    # what was made without the means for gradients is not going to train
    without = torch.is_inference_mode_enabled() or (witness is not None and witness.is_inference())
    return None if without else witness


def _measured(
    model: Any,
    spec: ModelSpec,
    tokens: FlatTokens,
    path: Path,
    plain_head: bool,
    witness: nn.Parameter | None,
) -> dict[str, Tensor]:
    """Hidden states, log-probs and, where a weight trains, its gradient."""
    with torch.set_grad_enabled(witness is not None):
        out = hf_token_stats(
            model, tokens, path=path, stats=("hidden",), plain_head=plain_head, pad_id=spec.pad_id
        )
        assert out.hidden is not None
        found = {"hidden states": out.hidden.detach(), "log-probs": out.logps.detach()}
        if witness is not None:
            weights = torch.linspace(-1, 1, len(out.logps), device=out.logps.device)
            loss = (out.logps * weights).sum()
            (found["gradient"],) = torch.autograd.grad(loss, witness)
    return {name: value.double() for name, value in found.items()}


def _beyond_rounding(what: str, found: Tensor, right: Tensor, dtype: torch.dtype) -> str | None:
    """How two computations of the same differ, or None where rounding explains it."""
    gap = float((found - right).norm() / right.norm().clamp(min=1e-300))
    half = dtype in (torch.float16, torch.bfloat16)
    rounding = torch.finfo(dtype if half else torch.float32).eps
    if what == "gradient":
        limit = (HALF_OF_GRADIENTS if half else SINGLE_OF_GRADIENTS) * rounding
    else:
        limit = (HALF_ROUNDINGS if half else SINGLE_ROUNDINGS) * rounding
    return None if gap <= limit else f"{what} differ by {gap:.2g}, more than {limit:.2g}"


@torch.no_grad()
def decoding_misfit(model: Any, spec: ModelSpec) -> str | None:
    """Why shared prompts do not work while decoding with a model; None where they do.

    Args:
        model: a Hugging Face causal LM to which ``packed_misfit`` had no objection.
        spec: of the model.
    """
    weight = next(model.parameters())
    device = weight.device
    base = _tokens(spec, model)
    prompts = [p.tolist() for p in base.prompt_ids.split(base.prompt_lengths)]
    steps = min(2, spec.context_length - max(base.prompt_lengths))
    ids = torch.arange(4 * (steps + 1), device=device).view(4, -1) * 5 % spec.vocab_size
    tokens = replace(base, response_ids=ids.flatten(), lengths=[steps + 1] * 4)
    seen: list[Tensor] = []

    def run(call: Callable[[Any], Any]) -> Any:
        watch = model.base_model.register_forward_hook(
            lambda module, inputs, output: seen.append(output.last_hidden_state[0])
        )
        try:
            return call(model)
        finally:
            watch.remove()

    try:
        with _narrowed(model, _beyond(base)):
            cache = SharedCache()
            enter_shared(run, cache, prompts, 2, device)
            for t in range(steps):
                step_shared(run, cache, ids[:, t])
            padded = hf_token_stats(
                model, tokens, path="padded", stats=("hidden",), plain_head=False,
                pad_id=spec.pad_id,
            ).hidden  # fmt: skip
        assert padded is not None
        right = padded.view(4, steps + 1, -1)[:, 1:].double()
        found = torch.stack(seen[1:], 1).double()
    except Exception as error:  # any architecture may refuse in its own way
        return f"{type(error).__name__}: {error}"
    return _beyond_rounding("hidden states", found, right, weight.dtype)


def _tokens(spec: ModelSpec, model: Any) -> FlatTokens:
    """Two prompts with two responses each, of different lengths, within any context."""
    table = model.get_input_embeddings()
    room = min(spec.context_length, 12)
    lengths = [max(room // 4, 1), max(room // 4, 1) + 1]
    answers = [2, 3, 1, min(4, room - lengths[1])]
    ids = torch.arange(sum(lengths) + sum(answers), device=table.weight.device)
    ids = ids * 7 % spec.vocab_size
    # a row of zeros is no token: through a norm its gradient grows beyond any number
    ids[ids == getattr(table, "padding_idx", None)] = spec.vocab_size - 1
    return FlatTokens(
        prompt_ids=ids[: sum(lengths)],
        prompt_lengths=lengths,
        response_ids=ids[sum(lengths) :],
        lengths=answers,
        prompt_of=[0, 0, 1, 1],
    )


@torch.no_grad()
def head_is_plain(model: Any) -> bool:
    """Whether logits are the output layer on the last hidden state, in the declared form."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return False
    # not token 0: its embedding may be the zero of padding
    ids = torch.tensor([[1, head.out_features - 1]], device=head.weight.device)
    hidden = getattr(model.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
    if hidden is None or hidden.shape[-1] != head.in_features:
        return False
    form = declared_form(model.config)
    largest = head(hidden).abs().max().clamp(min=1e-6) * abs(form.scale)
    # Small logits pass through a soft cap almost unchanged, so look at large ones; with a cap all
    # of those are alike, so look at some of its own size too.
    sizes = [1e3] if form.cap is None else [1e3, 2 * form.cap]
    return all(_keeps_form(model, head, hidden, ids, size / largest) for size in sizes)


def _keeps_form(model: Any, head: nn.Module, hidden: Tensor, ids: Tensor, scale: Tensor) -> bool:
    """Whether the model's logits are of the declared form when the head's product is scaled."""
    enlarge = head.register_forward_hook(lambda module, inputs, output: output * scale)
    try:
        logits = model(input_ids=ids, use_cache=False).logits
        wanted = declared_form(model.config)(head(hidden))
        near = 1e-3 * float(wanted.abs().max())
        if wanted.dtype in (torch.float16, torch.bfloat16):
            near *= 4
        return torch.allclose(wanted, logits, atol=near, rtol=1e-2)
    finally:
        enlarge.remove()
