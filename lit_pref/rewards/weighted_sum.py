"""A weighted sum of rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lit_pref.rewards.base import checked_scores, settings_version
from lit_pref.types import Group, Refusal, RewardSource

__all__ = ["WeightedSum"]


class WeightedSum:
    """``sum_i weights[i] * sources[i]``.

    Args:
        sources: the rewards.
        weights: one finite number for each; negative turns a reward into a penalty.

    Raises:
        Refusal: no sources, or weights that do not fit them.
    """

    def __init__(self, sources: Sequence[RewardSource], *, weights: Sequence[float]) -> None:
        self.sources, self.weights = list(sources), [float(w) for w in weights]
        if not self.sources or len(self.sources) != len(self.weights):
            raise Refusal(
                f"a weighted sum needs one weight for each of its rewards; got "
                f"{len(self.sources)} rewards and {len(self.weights)} weights"
            )
        if not all(math.isfinite(w) for w in self.weights):
            raise Refusal(f"the weights of a weighted sum must be finite; got {self.weights}")
        parts = list(zip(self.weights, self.sources, strict=True))
        self.name = " + ".join(f"{weight:g} {source.name}" for weight, source in parts)
        self.version = settings_version(parts=[[w, s.name, s.version] for w, s in parts])

    def score(self, groups: Sequence[Group]) -> list[float]:
        """One number per response, groups in order, responses in order.

        Raises:
            RewardError: one of the rewards failed; the message names that one.
        """
        columns = [checked_scores(source, groups) for source in self.sources]
        return [
            sum(w * s for w, s in zip(self.weights, row, strict=True))
            for row in zip(*columns, strict=True)
        ]
