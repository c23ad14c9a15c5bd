"""Low-rank adapters (LoRA, arXiv 2106.09685) on a policy, through the package ``peft``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_pref.functional.rng import coordinate_seed
from lit_pref.types import Refusal

__all__ = ["LoRA", "add_adapters", "adapters_off", "is_adapter", "merged_state", "save_adapters"]

ADAPTER = "default"


@dataclass(frozen=True, kw_only=True)
class LoRA:
    r"""Train low-rank adapters and leave the model's own weights alone.

    .. math:: W x + \frac{\alpha}{r} B A x

    (arXiv 2106.09685, equation 3.) A is random and B is 0, so training starts at the model itself.
    Adapters have no dropout, for the same reason as the model: a ratio of the first pass is 1.

    Attributes:
        rank: r, at least 1.
        alpha: scale of the adapters; None is twice the rank.
        targets: which linear layers have an adapter: ``"all-linear"`` (all but the output layer),
            or the last parts of their names, such as ``("q_proj", "v_proj")``.
        seed: of the random A.
        export: ``merged`` writes a model folder with the adapters added to its weights;
            ``adapter`` writes the adapters alone, as ``peft`` does.

    Raises:
        Refusal: an argument out of range, or ``peft`` is not installed.
    """

    rank: int = 16
    alpha: float | None = None
    targets: str | Sequence[str] = "all-linear"
    seed: int = 0
    export: Literal["merged", "adapter"] = "merged"

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or self.rank < 1:
            raise Refusal(
                f"model.lora.rank must be a whole number from 1, got {self.rank!r}; 8 to 64 is "
                "usual, null trains all weights"
            )
        if self.alpha is not None and not (0 < self.alpha < math.inf):
            raise Refusal(
                f"model.lora.alpha must be larger than 0, got {self.alpha}; null is twice the rank"
            )
        if self.export not in ("merged", "adapter"):
            raise Refusal(f"model.lora.export must be merged or adapter, got {self.export!r}")
        if not self.targets:
            raise Refusal(
                "model.lora.targets is empty; give all-linear or names such as [q_proj, v_proj]"
            )
        if not isinstance(self.targets, str):
            object.__setattr__(self, "targets", tuple(self.targets))
        if find_spec("peft") is None:
            raise Refusal(
                "model.lora needs the package peft, which is not installed; install it with: "
                'pip install -e ".[peft]"'
            )

    @property
    def scale(self) -> float:
        """Alpha, its default worked out."""
        return 2.0 * self.rank if self.alpha is None else float(self.alpha)

    def __str__(self) -> str:
        targets = self.targets if isinstance(self.targets, str) else ",".join(self.targets)
        return f"LoRA(rank={self.rank}, alpha={self.scale:g}, targets={targets})"


def _config(lora: LoRA) -> Any:
    from peft import LoraConfig

    named = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    targets = named if named == "all-linear" or not isinstance(named, str) else [named]
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.scale,  # type: ignore[arg-type]
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )


def add_adapters(model: Any, lora: LoRA) -> None:
    """Put adapters into a model, in place; only they need gradients afterwards.

    Half-precision models get float32 adapters: small updates would be rounded away.

    Args:
        model: a transformers model.
        lora: what to add.

    Raises:
        Refusal: no layer has such a name, or a tied output layer is among the targets.
    """
    from peft import inject_adapter_in_model

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.default_generator.manual_seed(coordinate_seed(lora.seed, "lora"))
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # peft sets it right itself
        try:
            inject_adapter_in_model(_config(lora), model, adapter_name=ADAPTER)
        except ValueError as error:
            linear = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if _linear(m)})
            raise Refusal(
                f"model.lora.targets={lora.targets}: adapters cannot be added ({error}); the "
                f"linear layers of this model are {', '.join(linear)}"
            ) from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name))
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    adapted = {id(layer.get_base_layer().weight) for _, layer in _layers(model)}
    if tied and id(model.get_input_embeddings().weight) in adapted:
        raise Refusal(
            "model.lora.targets names the output layer or the embedding, which are one matrix in "
            "this model; leave them out"
        )


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return any(part.startswith("lora_") for part in name.split("."))


def _layers(model: nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer)]


def adapters_off(model: nn.Module) -> None:
    """Make a model with adapters compute what its own weights say, from now on."""
    for _, layer in _layers(model):
        layer.enable_adapters(False)


def merged_state(model: Any) -> dict[str, Tensor]:
    """Weights by their plain names, with adapters added to the layers that have one.

    Raises:
        Refusal: the model's own weights are quantized.
    """
    layers = _layers(model)
    if any(not layer.get_base_layer().weight.is_floating_point() for _, layer in layers):
        raise Refusal(
            "adapters cannot be merged into quantized weights; use model.lora.export=adapter and "
            "merge them into the model in full precision with peft"
        )
    with torch.no_grad():
        out = {
            name.replace(".base_layer.", "."): value.detach()
            for name, value in model.state_dict().items()
            if not is_adapter(name)
        }
        for name, layer in layers:
            weight = layer.get_base_layer().weight
            change = layer.get_delta_weight(ADAPTER)
            total = weight.to(change.dtype) + change.to(weight.device)
            out[f"{name}.weight"] = total.to(weight.dtype).detach()
    return out


def save_adapters(model: Any, lora: LoRA, folder: str, *, base: str) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, as ``peft`` reads them.

    Args:
        model: with adapters.
        lora: their settings.
        folder: where to.
        base: name or folder of the model that they belong to.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    config = _config(lora)
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.target_modules = {name.rsplit(".", 1)[-1] for name, _ in _layers(model)}
    config.fan_in_fan_out = any(
        getattr(layer, "fan_in_fan_out", False) for _, layer in _layers(model)
    )
    config.save_pretrained(where)
    state = get_peft_model_state_dict(model, adapter_name=ADAPTER)
    named = {f"base_model.model.{k}": v.detach().cpu().contiguous() for k, v in state.items()}
    save_file(named, where / "adapter_model.safetensors", metadata={"format": "pt"})
