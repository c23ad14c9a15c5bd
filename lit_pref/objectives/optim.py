"""Optimizer and learning-rate schedule as plain settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_pref.types import Refusal

__all__ = ["OptimizerSettings", "SchedulerSettings", "clip_gradients"]

_CLASSES = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


@dataclass(kw_only=True)
class OptimizerSettings:
    """How the policy is updated.

    Attributes:
        name: ``adamw``, ``adam`` or ``sgd``.
        lr: learning rate.
        betas: decay rates of Adam's moments.
        eps: Adam's epsilon.
        weight_decay: decoupled for ``adamw``.
        clip_norm: gradients are scaled to at most this norm; None leaves them alone.
        max_skipped: so many steps in a row may have a non-finite gradient; one more stops the run.
        factory: makes the optimizer from parameter groups instead, for plain Python.
    """

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    max_skipped: int = 10
    factory: Callable[[Iterable[Any]], torch.optim.Optimizer] | None = None

    def __post_init__(self) -> None:
        if self.name not in _CLASSES:
            raise Refusal(f"optimizer.name must be one of {', '.join(_CLASSES)}, got {self.name!r}")
        for name in ("lr", "eps", "weight_decay", "clip_norm", "max_skipped"):
            _check_number(f"optimizer.{name}", getattr(self, name), optional=name == "clip_norm")
        if not (self.lr >= 0 and math.isfinite(self.lr)):
            raise Refusal(f"optimizer.lr must be a number from 0, got {self.lr}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise Refusal(
                f"optimizer.clip_norm must be larger than 0, got {self.clip_norm}; "
                "null switches clipping off"
            )
        if self.max_skipped < 0:
            raise Refusal(f"optimizer.max_skipped must be 0 or more, got {self.max_skipped}")
        self.betas = (float(self.betas[0]), float(self.betas[1]))

    def build(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        """The optimizer over parameters or parameter groups."""
        if self.factory is not None:
            return self.factory(parameters)
        groups = list(parameters)
        extra: dict[str, Any] = {}
        if self.name != "sgd":
            extra = {"betas": self.betas, "eps": self.eps, "fused": _can_fuse(groups)}
        return _CLASSES[self.name](groups, lr=self.lr, weight_decay=self.weight_decay, **extra)


def _check_number(key: str, value: Any, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Refusal(f"{key} must be a number, got {value!r}")


def _can_fuse(groups: list[Any]) -> bool | None:
    """Fused Adam updates in place; the default makes temporaries as large as the model."""
    tensors = [p for g in groups for p in (g["params"] if isinstance(g, dict) else [g])]
    plain = all(type(p) is nn.Parameter and p.device.type in ("cpu", "cuda") for p in tensors)
    return True if plain and all(p.is_floating_point() for p in tensors) else None


@dataclass(kw_only=True)
class SchedulerSettings:
    """Learning rate over the run, as a factor of ``optimizer.lr``.

    Attributes:
        name: ``constant``, ``linear`` (to ``final``) or ``cosine`` (to ``final``).
        warmup_steps: steps of linear warm-up; a number below 1 is a share of all steps.
        final: factor where it ends, one step after the last.
    """

    name: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: float = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in ("constant", "linear", "cosine"):
            raise Refusal(f"scheduler.name must be constant, linear or cosine, got {self.name!r}")
        for name in ("warmup_steps", "final"):
            _check_number(f"scheduler.{name}", getattr(self, name))
        if self.warmup_steps < 0:
            raise Refusal(f"scheduler.warmup_steps must be 0 or more, got {self.warmup_steps}")

    def factor(self, step: int, total: int) -> float:
        """Factor for the update number ``step`` (from 0) of ``total``.

        Example:
            >>> SchedulerSettings(name="linear").factor(5, 10)
            0.5
        """
        warmup = self.warmup_steps * total if self.warmup_steps < 1 else self.warmup_steps
        if step < warmup:
            return (step + 1) / (math.ceil(warmup) + 1)
        if self.name == "constant":
            return 1.0
        progress = min((step - warmup) / max(total - warmup, 1), 1.0)
        shape = 1 - progress if self.name == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return self.final + (1 - self.final) * shape

    def build(self, optimizer: torch.optim.Optimizer, total: int) -> Any:
        """A torch scheduler to be stepped after every optimizer step."""
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: self.factor(s, total))


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Scale gradients to at most ``max_norm``; returns their norm before that, a scalar.

    Works on ordinary and on sharded parameters.
    """
    present = [p for p in parameters if p.grad is not None]
    if not present:
        return torch.zeros(())
    bound = float("inf") if max_norm is None else max_norm
    norm = nn.utils.clip_grad_norm_(present, bound)
    full = getattr(norm, "full_tensor", None)
    return norm if full is None else full()
