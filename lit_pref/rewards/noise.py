"""Preferences with noise: a labeller who errs (label flips) or is not sure (Bradley-Terry)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lit_pref.functional.rng import uniforms
from lit_pref.rewards.base import at_least_one, settings_version
from lit_pref.rewards.comparing import is_oracle
from lit_pref.rewards.scoring import Guarded, calls_at_once, groups_at_once, merged_counts
from lit_pref.types import Comparison, Group, PreferenceOracle, Refusal, RewardSource

__all__ = ["NoisyPreference"]


class NoisyPreference:
    """An oracle whose verdicts are those of a source, with noise.

    With ``temperature`` T the winner of two responses with rewards r_1 and r_2 is drawn by
    Bradley and Terry (1952): ``P(1 beats 2) = sigmoid((r_1 - r_2) / T)``. Without one the larger
    reward wins, and equal rewards tie. A verdict (no tie) is then turned with probability ``flip``.

    Draws are functions of (seed, prompt, the two responses), so the same question gets the same
    answer, in any order, in every pass, on any process and after a restart.

    Args:
        source: a reward or an oracle; None: the task's true reward.
        flip: probability in [0, 1] that a verdict is turned.
        temperature: in units of the reward; None: no draw.
        opponents: each response is compared with the next so many in a circle; None: with all.
        seed: of the draws.
        true_reward: the task's, given by the application.

    Raises:
        Refusal: no source, or an argument out of range.
    """

    def __init__(
        self,
        source: RewardSource | PreferenceOracle | None = None,
        *,
        flip: float = 0.0,
        temperature: float | None = None,
        opponents: int | None = None,
        seed: int = 0,
        true_reward: RewardSource | None = None,
    ) -> None:
        source = true_reward if source is None else source
        if source is None:
            raise Refusal(
                "reward=noisy needs a reward to add noise to: the task has no true reward, so give "
                "one, for example 'reward.source={_target_: lit_pref.rewards.LengthReward, "
                "max_new_tokens: 64}'"
            )
        if not 0 <= flip <= 1:
            raise Refusal(f"reward.flip is a probability in [0, 1], got {flip}")
        if temperature is not None and not 0 < temperature < math.inf:
            raise Refusal(f"reward.temperature must be above 0 (null: no draw), got {temperature}")
        if temperature is not None and is_oracle(source):
            raise Refusal(
                f"reward.temperature turns rewards into probabilities, and {source.name!r} "
                "compares; leave it out"
            )
        self.source, self._part = source, Guarded(source)
        self.flip, self.temperature, self.seed = float(flip), temperature, seed
        self.opponents = opponents if opponents is None else at_least_one("opponents", opponents)
        self.concurrency, self.groups_at_once = calls_at_once(source), groups_at_once(source)
        self.name = f"noisy {source.name}"
        self.version = settings_version(
            source=[source.name, source.version],
            flip=self.flip,
            temperature=temperature,
            opponents=opponents,
            seed=seed,
        )

    def plain(self) -> RewardSource | PreferenceOracle:
        """The source without noise."""
        return self.source

    def counts(self) -> dict[str, float]:
        """Those of the source."""
        return merged_counts([self.source])

    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        """0, 1, or 0.5 for a tie; see the class.

        Raises:
            RewardError: the source failed.
        """
        sure = self._probabilities(comparisons)
        draws = uniforms([self._key(c) for c in comparisons], 2).tolist()
        return [
            self._verdict(c, p, *drawn)
            for c, p, drawn in zip(comparisons, sure, draws, strict=True)
        ]

    def _probabilities(self, comparisons: Sequence[Comparison]) -> list[float]:
        """P(first is better) before any draw."""
        if is_oracle(self.source):
            return self._part.compare(comparisons)
        groups: dict[int, Group] = {id(c.group): c.group for c in comparisons}
        scores = iter(self._part.scores(list(groups.values())))
        by_group = {key: [next(scores) for _ in g.responses] for key, g in groups.items()}
        out = []
        for c in comparisons:
            gap = by_group[id(c.group)][c.first] - by_group[id(c.group)][c.second]
            if self.temperature is not None:
                out.append(_sigmoid(gap / self.temperature))
            else:
                out.append(0.5 if gap == 0 else float(gap > 0))
        return out

    def _verdict(self, c: Comparison, p: float, first: float, second: float) -> float:
        """From P(first is better) and two uniforms in [0, 1) to what the labeller says."""
        low_first = self._ids(c)[0] <= self._ids(c)[1]
        if self._ids(c)[0] == self._ids(c)[1] or (p == 0.5 and self.temperature is None):
            return 0.5
        low_wins = first < (p if low_first else 1 - p)  # the same whichever is asked first
        if second < self.flip:
            low_wins = not low_wins
        return float(low_wins == low_first)

    def _key(self, c: Comparison) -> tuple[int | str, ...]:
        low, high = sorted(self._ids(c))
        return (self.seed, "noise", c.group.prompt.id, str(low), str(high))

    def _ids(self, c: Comparison) -> tuple[list[int], list[int]]:
        return c.group.responses[c.first].ids, c.group.responses[c.second].ids


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
