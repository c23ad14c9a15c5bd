"""A judge without a model."""

from __future__ import annotations

from collections.abc import Sequence

from lit_pref.types import Group

__all__ = ["Shorter"]


class Shorter:
    """Prefers the shorter response; equal lengths tie."""

    name = "shorter"
    version = "1"

    def compare(self, first: Sequence[Group], second: Sequence[Group]) -> list[float]:
        """1 where the first of a pair is shorter, 0.5 where they are equally long, else 0."""
        sizes = [[len(g.responses[0].ids) for g in side] for side in (first, second)]
        return [(a < b) + 0.5 * (a == b) for a, b in zip(*sizes, strict=True)]
