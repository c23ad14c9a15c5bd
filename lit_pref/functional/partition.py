"""Dividing items of different sizes into parts of nearly equal work."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

__all__ = ["balanced", "fitting"]


def balanced(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Divide items into ``count`` parts of nearly equal total size.

    The largest item goes first, each to the part that is smallest so far (its total exceeds the
    best possible largest total by at most a third). Ties go to the lower number, so every process
    divides alike. With at least ``count`` items of positive size no part is empty.

    Args:
        sizes: work of each item.
        count: number of parts, at least 1.

    Returns:
        Ascending indices of each part.

    Example:
        >>> balanced([5, 1, 4, 2], 2)
        [[0, 1], [2, 3]]
    """
    parts: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, n) for n in range(count)]
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        load, n = heapq.heappop(loads)
        parts[n].append(i)
        heapq.heappush(loads, (load + sizes[i], n))
    return [sorted(part) for part in parts]


def fitting(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Divide items into few parts of at most ``budget``, of nearly equal size.

    An item larger than the budget makes a part of its own.

    Args:
        sizes: size of each item.
        budget: largest total of a part.

    Returns:
        Ascending indices of each part, the largest part first.
    """
    tight = _first_fit(sizes, budget)
    even = balanced(sizes, max(len(tight), 1))
    right = all(len(part) == 1 or sum(sizes[i] for i in part) <= budget for part in even)
    chosen = [part for part in (even if right else tight) if part]
    return sorted(chosen, key=lambda part: (-sum(sizes[i] for i in part), part))


def _first_fit(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Largest first, each into the first part with room."""
    parts: list[list[int]] = []
    rooms: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        place = next((n for n, room in enumerate(rooms) if sizes[i] <= room), None)
        if place is None:
            parts.append([])
            rooms.append(budget)
            place = len(parts) - 1
        parts[place].append(i)
        rooms[place] -= sizes[i]
    return [sorted(part) for part in parts]
