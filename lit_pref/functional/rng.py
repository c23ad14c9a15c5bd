"""Random draws as a function of coordinates, never of history.

Every draw comes from a generator seeded by its coordinates, for example
``(seed, "sample", round, prompt, occurrence, response)``. So the same numbers meet the same prompt
on whichever rank, in whichever batch, before or after a restart, and no generator state is saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "Order",
    "coordinate_seed",
    "generator",
    "permutation",
    "stream_position",
    "stream_slice",
    "uniforms",
]

Order = Literal["shuffled", "fixed"]


def coordinate_seed(*coordinates: int | str) -> int:
    """A 63-bit seed that depends on each coordinate and on their order.

    Args:
        coordinates: integers and words; ``1`` and ``"1"`` are different coordinates.

    Example:
        >>> coordinate_seed(0, "sample", 1) == coordinate_seed(0, "sample", 1)
        True
        >>> coordinate_seed(0, "sample", 1) == coordinate_seed(0, "sample", 2)
        False
    """
    text = "\x1f".join(f"{type(c).__name__[0]}{c}" for c in coordinates)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*coordinates: int | str) -> torch.Generator:
    """A fresh CPU generator for these coordinates."""
    return torch.Generator().manual_seed(coordinate_seed(*coordinates))


def uniforms(keys: Sequence[tuple[int | str, ...]], count: int) -> Tensor:
    """Uniform numbers in [0, 1).

    Args:
        keys: one tuple of coordinates per row.
        count: numbers per row.

    Returns:
        [len(keys), count] float64; row i depends on ``keys[i]`` alone.
    """
    if not keys:
        return torch.zeros(0, count, dtype=torch.float64)
    rows = [torch.rand(count, generator=generator(*k), dtype=torch.float64) for k in keys]
    return torch.stack(rows)


def permutation(size: int, *coordinates: int | str) -> list[int]:
    """A permutation of ``range(size)`` for these coordinates."""
    return torch.randperm(size, generator=generator(*coordinates)).tolist()


def stream_position(size: int, position: int, *coordinates: int | str) -> tuple[int, int]:
    """Entry of an endless stream of permutations of ``range(size)``.

    Slot i of round r with P prompts a round is position ``r * P + i``: no cursor is state, and a
    set smaller than a round wraps into the next permutation.

    Args:
        size: number of items, at least 1.
        position: position in the stream, from 0.
        coordinates: what else the permutations depend on (the run's seed, the purpose).

    Returns:
        (item, number of the permutation it was taken from).
    """
    epoch, offset = divmod(position, size)
    return permutation(size, *coordinates, epoch)[offset], epoch


def stream_slice(
    size: int, start: int, count: int, *coordinates: int | str, order: Order = "shuffled"
) -> list[tuple[int, int]]:
    """Neighbouring entries of the stream of ``stream_position``; each permutation is made once.

    Args:
        size: number of items, at least 1.
        start: first position.
        count: number of positions.
        coordinates: what else the permutations depend on.
        order: ``shuffled``: every pass over the items in an order of its own; ``fixed``: each in
            the order of the items.

    Returns:
        (item, number of the pass over the items) for each position.

    Example:
        >>> stream_slice(3, 2, 3, order="fixed")
        [(2, 0), (0, 1), (1, 1)]
    """
    out: list[tuple[int, int]] = []
    while len(out) < count:
        epoch, offset = divmod(start + len(out), size)
        some = min(size - offset, count - len(out))
        if order == "fixed":
            items = list(range(offset, offset + some))
        else:
            items = permutation(size, *coordinates, epoch)[offset : offset + some]
        out += [(item, epoch) for item in items]
    return out
