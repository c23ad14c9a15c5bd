"""Which GPU this process will have, told before there is a trainer."""

from __future__ import annotations

import torch
from omegaconf import DictConfig, OmegaConf

from lit_pref.app.processes import local_rank

__all__ = ["own_gpu"]


def own_gpu(cfg: DictConfig) -> torch.device:
    """The GPU that Lightning will choose for this process.

    Asking "the" GPU instead would measure the first one from every process, and take memory of it
    for each.

    Args:
        cfg: the composed configuration; ``trainer.devices`` counts GPUs or lists their numbers.
    """
    devices = cfg.trainer.get("devices", 1)
    if OmegaConf.is_config(devices):
        listed = [int(n) for n in devices]
    else:
        text = str(devices)
        listed = [int(n) for n in text.split(",") if n.strip()] if "," in text else []
    place = local_rank()
    return torch.device("cuda", listed[place] if place < len(listed) else place)
