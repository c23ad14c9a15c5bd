"""The contextual bandit's table of contexts: what its policy sees of a prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_pref.functional.rng import generator

__all__ = ["TABLE", "TRAIN_POOL", "VALIDATION_POOL", "WIDTH", "context_table"]

TRAIN_POOL = 1000
"""Contexts that training prompts are drawn from: ids 0 to 999."""
VALIDATION_POOL = 100
"""Contexts that are measured and never trained on: ids 1000 to 1099."""
TABLE = TRAIN_POOL + VALIDATION_POOL
WIDTH = 100
"""Numbers in one context."""


def context_table(*, size: int = TABLE, width: int = WIDTH, seed: int = 0) -> Tensor:
    """Contexts drawn once, uniform on [0, 1] (arXiv 2404.14367, section 4).

    Args:
        size: number of contexts; a prompt is one id into them.
        width: numbers in one context.
        seed: of the draw; run seeds share the table.

    Returns:
        [size, width] float32.
    """
    return torch.rand(size, width, generator=generator(seed, "contextual_bandit", "contexts"))
