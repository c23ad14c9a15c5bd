"""A weighted sum of rewards."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from lit_pref.rewards.base import measuring, settings_version
from lit_pref.rewards.scoring import Guarded, calls_at_once, groups_at_once, merged_counts
from lit_pref.types import Group, PreferenceOracle, Refusal, RewardSource

__all__ = ["WeightedSum", "z_scores"]

Normalise = Literal["none", "group"]


class WeightedSum:
    """``sum_i weights[i] * sources[i]``.

    Of an oracle the win shares are summed. With ``normalise="group"`` each part is z-scored over
    the responses to a prompt first (as in GDPO, arXiv 2601.05242), so that weights compare parts of
    different scales. Such sums say nothing about how good a policy is: validation measures the
    plain one.

    Args:
        sources: the rewards.
        weights: one finite number for each; negative turns a reward into a penalty.
        normalise: ``none`` or ``group``.

    Raises:
        Refusal: no sources, or weights that do not fit them.
    """

    def __init__(
        self,
        sources: Sequence[RewardSource | PreferenceOracle],
        *,
        weights: Sequence[float],
        normalise: Normalise = "none",
    ) -> None:
        self.sources, self.weights = list(sources), [float(w) for w in weights]
        if not self.sources or len(self.sources) != len(self.weights):
            raise Refusal(
                f"a weighted sum needs one weight for each of its rewards; got "
                f"{len(self.sources)} rewards and {len(self.weights)} weights"
            )
        if not all(math.isfinite(w) for w in self.weights):
            raise Refusal(f"the weights of a weighted sum must be finite; got {self.weights}")
        if normalise not in ("none", "group"):
            raise Refusal(f"reward.normalise must be none or group, got {normalise!r}")
        self.normalise = normalise
        self._parts = [Guarded(source) for source in self.sources]
        self.concurrency = max(map(calls_at_once, self.sources))
        self.groups_at_once = max(map(groups_at_once, self.sources))
        parts = list(zip(self.weights, self.sources, strict=True))
        z = " z" if normalise == "group" else ""
        self.name = " + ".join(f"{weight:g}{z} {source.name}" for weight, source in parts)
        settings = {} if normalise == "none" else {"normalise": normalise}
        self.version = settings_version(
            parts=[[w, s.name, s.version] for w, s in parts], **settings
        )

    def plain(self) -> RewardSource | None:
        """The sum of the parts as they measure; None if one of them measures nothing."""
        parts = [measuring(source) for source in self.sources]
        if any(part is None for part in parts):
            return None
        if parts == self.sources and self.normalise == "none":
            return _Measuring(self)
        return _Measuring(WeightedSum(parts, weights=self.weights))  # type: ignore[arg-type]

    def counts(self) -> dict[str, float]:
        """Those of the parts, summed."""
        return merged_counts(self.sources)

    def score(self, groups: Sequence[Group]) -> list[float]:
        """One number per response, groups in order, responses in order.

        Raises:
            RewardError: one of the rewards failed; the message names that one.
        """
        columns = [part.scores(groups) for part in self._parts]
        if self.normalise == "group":
            columns = [z_scores(column, [len(g.responses) for g in groups]) for column in columns]
        return [
            sum(w * s for w, s in zip(self.weights, row, strict=True))
            for row in zip(*columns, strict=True)
        ]


class _Measuring:
    """A sum that is its own measure."""

    def __init__(self, total: WeightedSum) -> None:
        self.name, self.version, self.score = total.name, total.version, total.score
        self.concurrency, self.groups_at_once = total.concurrency, total.groups_at_once


def z_scores(scores: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """``(s - mean) / std`` within each group (std over its K responses); 0 where all are equal.

    Args:
        scores: of all responses, groups in order.
        sizes: responses of each group.

    Example:
        >>> z_scores([1.0, 3.0, 5.0, 5.0], [2, 2])
        [-1.0, 1.0, 0.0, 0.0]
    """
    out: list[float] = []
    start = 0
    for size in sizes:
        part = list(scores[start : start + size])
        start += size
        if len(set(part)) < 2:
            out += [0.0] * size
            continue
        mean, std = statistics.mean(part), statistics.pstdev(part)  # exact: no sum overflows
        out += [(s - mean) / std if std > 0 else 0.0 for s in part]
    return out
