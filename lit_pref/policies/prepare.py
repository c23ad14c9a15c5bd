"""What is done to a freshly loaded model before anything is computed with it."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from lit_pref.policies.spec import dropout_off

__all__ = ["keep_trainable", "recompute_activations", "switch_dropout_off", "weights_digest"]


def switch_dropout_off(model: nn.Module) -> None:
    """Set every dropout rate of a model to 0: layers, numbers kept by its modules, config.

    Dropout would make the first on-policy ratio differ from 1, as it did in the paper's code.
    Architectures keep rates in different places: as ``nn.Dropout``, as numbers that their forward
    hands to ``functional.dropout`` (OPT), or as chances to leave a whole layer out.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if _is_rate(name) and isinstance(value, float):
                setattr(module, name, 0.0)
    config: Any = getattr(model, "config", None)
    if config is not None:
        dropout_off(config)


def _is_rate(name: str) -> bool:
    return "dropout" in name or name.endswith("pdrop") or name in ("layerdrop", "drop_path")


def keep_trainable(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking weights after a forward in eval mode on a CPU.

    The repacked form has no gradient, and nothing turns it back when training goes on.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010


def recompute_activations(model: Any) -> None:
    """Gradient checkpointing, under the name that this version of transformers has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    if enable is not None:
        enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def weights_digest(weights: dict[str, Tensor]) -> str:
    """A hash of names, types, shapes and contents: equal exactly when all weights are.

    Args:
        weights: tensors by name, of any type and device.
    """
    found = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:32]
