"""``trainer.precision=auto``: the faster of float32 and bf16 autocast here, found out by trying."""

from __future__ import annotations

import logging
import statistics
import time

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from lit_pref.app.own_gpu import own_gpu
from lit_pref.app.processes import started_by
from lit_pref.types import Refusal

__all__ = ["faster_precision", "settle_precision"]

WORTH = 0.9
"""Autocast is taken if it needs at most this share of the time: float32 is the safer of the two."""

TOKENS, WIDTH = 128, 512
"""Of the trial on a processor; on a GPU both are larger, or it would wait for its host."""

log = logging.getLogger(__name__)


def settle_precision(cfg: DictConfig) -> None:
    """Replace ``auto`` in a configuration by what is faster on its device.

    From then on the run is one of that precision: it is saved, resumed and reported as such.

    Args:
        cfg: the composed configuration.

    Raises:
        Refusal: it cannot be found out: another kind of accelerator, or processes that something
            else started, each of which would find it out by itself.
    """
    if str(cfg.trainer.precision) != "auto":
        return
    give = "give trainer.precision=32-true or bf16-mixed"
    if started_by() not in ("itself", "lit_pref"):
        raise Refusal(
            f"trainer.precision=auto cannot be used under {started_by()}: each process would try "
            f"by itself, and they may disagree; {give}"
        )
    name = str(cfg.trainer.accelerator)
    cuda = name in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if not cuda and name not in ("auto", "cpu"):
        raise Refusal(
            f"trainer.precision=auto tries processors and CUDA devices, and trainer.accelerator="
            f"{name} is neither here; {give}"
        )
    cfg.trainer.precision = faster_precision(own_gpu(cfg) if cuda else torch.device("cpu"))


def faster_precision(device: torch.device) -> str:
    """``bf16-mixed`` where it trains clearly faster than float32, else ``32-true``.

    Forward and backward of a layer as language models have them, in turn in both precisions.

    Args:
        device: where it will train.
    """
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        log.info("trainer.precision=auto: 32-true (this GPU has no bf16)")
        return "32-true"
    scale = 8 if device.type == "cuda" else 1
    width = WIDTH * scale
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        layer = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        layer = layer.to(device)
        x = torch.randn(TOKENS * scale, width, device=device)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(4):
        for autocast, times in seconds.items():
            spent = _seconds(layer, x, half=autocast)
            if turn:  # the first warms up
                times.append(spent)
    if device.type == "cuda":  # the run's memory is measured next, perhaps in other processes
        del layer, x
        torch.cuda.empty_cache()
    plain, rounded = (statistics.median(times) for times in seconds.values())
    found = "bf16-mixed" if rounded <= WORTH * plain else "32-true"
    log.info(
        "trainer.precision=auto: %s (bf16-mixed takes %.2f times as long as 32-true)",
        found,
        rounded / plain,
    )
    return found


def _seconds(layer: nn.Module, x: Tensor, *, half: bool) -> float:
    """Time of one forward and backward."""
    _wait(x)
    start = time.perf_counter()
    with torch.enable_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=half):
        out = layer(x)
        out.float().square().mean().backward()
    _wait(x)
    spent = time.perf_counter() - start
    layer.zero_grad(set_to_none=True)
    return spent


def _wait(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
