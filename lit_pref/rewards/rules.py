"""Rewards that are simple rules on the response: length, regular expression, keywords."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal

from lit_pref.rewards.base import settings_version
from lit_pref.types import Group, Refusal

__all__ = ["KeywordReward", "LengthReward", "RegexReward"]


class LengthReward:
    """Shorter is better: ``-tokens / max_new_tokens``, the end-of-sequence token included.

    Args:
        max_new_tokens: the sampler's limit, so that scores lie in [-1, 0].

    Raises:
        Refusal: the limit is below 1.
    """

    name = "length"

    def __init__(self, *, max_new_tokens: int) -> None:
        if max_new_tokens < 1:
            raise Refusal(
                f"reward=length needs max_new_tokens of at least 1; got {max_new_tokens}. "
                "Set sampler.max_new_tokens"
            )
        self.max_new_tokens = max_new_tokens
        self.version = settings_version(max_new_tokens=max_new_tokens)

    def score(self, groups: Sequence[Group]) -> list[float]:
        """One number per response, groups in order, responses in order."""
        return [-len(r.ids) / self.max_new_tokens for group in groups for r in group.responses]


class RegexReward:
    """``reward`` when the pattern matches the response text, else 0.

    Args:
        pattern: a Python regular expression.
        reward: score of a match.
        mode: ``search`` finds the pattern anywhere, ``fullmatch`` needs the whole text to match.

    Raises:
        Refusal: the pattern does not compile, or the mode is unknown.
    """

    name = "regex"

    def __init__(
        self, *, pattern: str, reward: float = 1.0, mode: Literal["search", "fullmatch"] = "search"
    ) -> None:
        try:
            compiled = re.compile(pattern)
        except (re.error, TypeError) as error:
            raise Refusal(
                f"reward=regex needs a Python regular expression; got {pattern!r}: {error}"
            ) from error
        if mode not in ("search", "fullmatch"):
            raise Refusal(f"reward.mode must be search or fullmatch; got {mode!r}")
        _finite("reward.reward", reward)
        self.reward = float(reward)
        self._match = compiled.search if mode == "search" else compiled.fullmatch
        self.version = settings_version(pattern=pattern, reward=self.reward, mode=mode)

    def score(self, groups: Sequence[Group]) -> list[float]:
        """One number per response, groups in order, responses in order."""
        return [
            self.reward if self._match(r.text) else 0.0 for group in groups for r in group.responses
        ]


class KeywordReward:
    """``per_word`` for each of the words that occurs in the response.

    Whole words, without regard to case; a word that occurs twice counts once.

    Args:
        words: the words (or phrases) to look for.
        per_word: score of each word found; negative to discourage words.

    Raises:
        Refusal: no words, an empty word, or text in place of a list.
    """

    name = "keyword"

    def __init__(self, *, words: Sequence[str], per_word: float = 1.0) -> None:
        if isinstance(words, str):
            raise Refusal(f"reward.words must be a list of words, like [{words}]; got {words!r}")
        distinct = sorted({str(word).strip().lower() for word in words})
        if not distinct or "" in distinct:
            raise Refusal(f"reward=keyword needs at least one word, none empty; got {list(words)}")
        _finite("reward.per_word", per_word)
        self.per_word = float(per_word)
        # not \b: a word may begin or end with a character that is no letter ("c++")
        self._patterns = [re.compile(rf"(?<!\w){re.escape(w)}(?!\w)", re.I) for w in distinct]
        self.version = settings_version(words=distinct, per_word=self.per_word)

    def score(self, groups: Sequence[Group]) -> list[float]:
        """One number per response, groups in order, responses in order."""
        return [
            self.per_word * sum(p.search(r.text) is not None for p in self._patterns)
            for group in groups
            for r in group.responses
        ]


def _finite(key: str, value: float) -> None:
    if not math.isfinite(value):
        raise Refusal(f"{key} must be a finite number; got {value}")
