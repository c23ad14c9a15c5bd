"""A judge without a model."""

from __future__ import annotations

from collections.abc import Sequence

from lit_pref.types import Comparison

__all__ = ["Shorter"]


class Shorter:
    """Prefers the shorter response; equal lengths tie."""

    name = "shorter"
    version = "1"

    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        """1 where the first of a pair is shorter, 0.5 where they are equally long, else 0."""
        out = []
        for c in comparisons:
            first, second = (len(c.group.responses[k].ids) for k in (c.first, c.second))
            out.append((first < second) + 0.5 * (first == second))
        return out
