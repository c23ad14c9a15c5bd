"""Weights laid out once for the products of decoding, on a processor (oneDNN).

A step of decoding multiplies a few rows with every weight. A general matrix product first brings
the whole weight into the order that its inner loop reads; here that is done once for all steps.
The operators are torch's own, made for its compiler; they are not a documented interface, so this
file alone knows them, and tries them before it relies on them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["packed_bytes", "packed_weights"]

LEAST_ELEMENTS = 2**16
"""Smaller weights stay as they are: a call of the operator costs more than it gains."""

LEAST_TOKENS = 8
"""Fewer steps do not pay for the packing."""


@contextlib.contextmanager
def packed_weights(module: Any, *, tokens: int) -> Iterator[None]:
    """Linear layers of a module compute with packed copies of their weights inside this block.

    Results differ from those of the plain layers by rounding. Weights must not change inside.
    Layers on other devices, small ones, those of subclasses (adapters, quantized weights) and
    calls with gradients or under autocast are left alone, and so is everything where torch's
    operators are missing or wrong.

    Args:
        module: an ``nn.Module``; for anything else nothing is done.
        tokens: steps that will be made.
    """
    packed: list[Any] = []
    if isinstance(module, nn.Module) and tokens >= LEAST_TOKENS:
        for layer in module.modules():
            weight = _weight(layer)
            if weight is not None and _plain(layer) and _works(weight.dtype):
                layer.forward = _forward(layer, weight)
                packed.append(layer)
    try:
        yield
    finally:
        for layer in packed:
            del layer.forward  # the class's own again


def packed_bytes(module: nn.Module) -> int:
    """Memory of the packed copies, also of a module whose tensors have no contents yet."""
    weights = (_weight(layer) for layer in module.modules())
    return sum(w.numel() * w.element_size() for w in weights if w is not None)


def _weight(layer: nn.Module) -> Tensor | None:
    """[out, in] weight of a layer that can be packed."""
    if type(layer) is nn.Linear:
        weight: Tensor = layer.weight
    elif type(layer).__name__ == "Conv1D" and type(layer).__module__.startswith("transformers."):
        stored: Any = layer.weight
        weight = stored.t()  # GPT-2 stores [in, out]
    else:
        return None
    return weight if weight.dim() == 2 and weight.numel() >= LEAST_ELEMENTS else None


def _plain(layer: nn.Module) -> bool:
    """Whether the class's forward runs on a whole weight, of which no subclass makes more."""
    kinds = (nn.Parameter, Tensor)
    here = type(layer.weight) in kinds and layer.weight.device.type == "cpu"  # type: ignore[union-attr]
    return here and "forward" not in vars(layer)


def _forward(layer: Any, weight: Tensor) -> Callable[[Tensor], Tensor]:
    with torch.no_grad():
        packed = _pack(weight.detach().contiguous())
    plain, bias, dtype = layer.forward, layer.bias, weight.dtype
    product = torch.ops.mkldnn._linear_pointwise.default

    def forward(x: Tensor) -> Tensor:
        if x.dtype != dtype or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return plain(x)  # type: ignore[no-any-return]
        return product(x, packed, bias, "none", [], "")  # type: ignore[no-any-return]

    return forward


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight)  # type: ignore[no-any-return]


@functools.cache
def _works(dtype: torch.dtype) -> bool:
    """Whether the operators are there and right; tried once."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 64, generator=generator).to(dtype) for n in (3, 96))
    bias = torch.randn(96, generator=generator).to(dtype)
    try:
        with torch.no_grad():
            got = torch.ops.mkldnn._linear_pointwise(x[None], _pack(weight), bias, "none", [], "")
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    wanted = F.linear(x.double(), weight.double(), bias.double())
    error = (got[0].double() - wanted).abs().max() / wanted.abs().max()
    return bool(error <= 2 * torch.finfo(dtype).eps)
