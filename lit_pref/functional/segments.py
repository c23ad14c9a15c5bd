"""Sums and means over ragged segments of flat tensors. ``B`` segments, ``T`` elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_pref.transfer import sent

__all__ = [
    "expand_segments",
    "segment_mean",
    "segment_sum",
    "segment_varies",
    "suffix_sum",
    "weighted_mean",
]


def segment_sum(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """Sum of each segment.

    Args:
        values: [T] numbers.
        owner: [T] index of the segment of each element.
        count: number of segments, empty ones included.

    Returns:
        [count]; 0 for an empty segment.
    """
    return values.new_zeros(count).index_add(0, owner, values)


def segment_mean(values: Tensor, owner: Tensor, lengths: Sequence[int]) -> Tensor:
    """Mean of each segment; 0 for an empty one (its length is taken as 1)."""
    sizes = sent(list(lengths), values.device, values.dtype).clamp(min=1)
    return segment_sum(values, owner, len(lengths)) / sizes


def segment_varies(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """Whether a segment holds two different numbers, [count]; exact, unlike a deviation above 0.

    Example:
        >>> segment_varies(torch.tensor([0.1, 0.1, 0.2]), torch.tensor([0, 0, 0]), 2).tolist()
        [True, False]
    """
    ends = [
        values.new_zeros(count).scatter_reduce(0, owner, values, how, include_self=False)
        for how in ("amin", "amax")
    ]
    return ends[0] != ends[1]


def suffix_sum(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """For each element the sum from it to the end of its segment (reward-to-go), [T]."""
    parts = [p.flip(0).cumsum(0).flip(0) for p in values.split(list(lengths))]
    return torch.cat(parts) if parts else values


def expand_segments(
    lengths: Tensor, index: Tensor, *, total: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Elements of some segments, one segment after the other; a segment may come repeatedly.

    Args:
        lengths: [B] length of every segment.
        index: [N] which segments.
        total: M; None asks the device of the tensors for it, and waits.

    Returns:
        (element, owner, position), [M] each: the place in the flat tensor, which of the ``N`` it
        belongs to, and the place within its segment.

    Example:
        >>> import torch
        >>> expand_segments(torch.tensor([2, 1]), torch.tensor([1, 0]))[0].tolist()
        [2, 0, 1]
    """
    starts = (lengths.cumsum(0) - lengths)[index]
    sizes = lengths[index]
    every = torch.arange(len(index), device=index.device)
    owner = torch.repeat_interleave(every, sizes, output_size=total)
    first = sizes.cumsum(0) - sizes
    position = torch.arange(len(owner), device=index.device) - first[owner]
    return starts[owner] + position, owner, position


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    r"""Mean of values that count ``weight`` times each, without asking their device for anything.

    .. math:: \bar x = \frac{\sum_i w_i x_i}{\sum_i w_i}

    Args:
        values: [n], n at least 1 where there is no weight.
        weight: [n], none negative; None counts each once.

    Returns:
        A scalar; 0 where nothing counts, for then nothing that is made of it counts either.
    """
    if weight is None:
        return values.mean()
    weight = weight.to(values)
    total = weight.sum()
    return (values * weight).sum() / torch.where(total > 0, total, torch.ones_like(total))
