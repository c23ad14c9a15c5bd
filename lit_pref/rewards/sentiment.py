"""How positive a text is, by a real lexicon: the true reward of ``task=sentiment``."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from lit_pref.rewards.base import settings_version
from lit_pref.types import Group, Refusal

__all__ = ["SentimentReward"]


class SentimentReward:
    """VADER's compound score of the response, in [-1, 1].

    Valences of about 7,500 words, with negation, degree words, capitals and exclamation marks
    (Hutto and Gilbert, ICWSM 2014), summed and squashed: ``s / sqrt(s^2 + 15)``. A response
    without a word of the lexicon scores 0. Needs ``vaderSentiment`` (extra ``sentiment``).

    Raises:
        Refusal: the package is not installed.
    """

    name = "sentiment"

    def __init__(self) -> None:
        try:
            from vaderSentiment import vaderSentiment as vader
        except ModuleNotFoundError as error:
            raise Refusal(
                "task=sentiment and SentimentReward need vaderSentiment; install it with: "
                'pip install -e ".[sentiment]"'
            ) from error
        self._analyzer: Any = vader.SentimentIntensityAnalyzer()
        self._lock = threading.Lock()
        lexicon = repr(sorted(self._analyzer.lexicon.items()))
        self.version = settings_version(
            package=metadata.version("vaderSentiment"),
            lexicon=hashlib.sha256(lexicon.encode()).hexdigest(),
        )

    def score(self, groups: Sequence[Group]) -> list[float]:
        """One number per response, groups in order, responses in order."""
        with self._lock:  # its thread safety is not documented
            return [
                float(self._analyzer.polarity_scores(r.text)["compound"])
                for group in groups
                for r in group.responses
            ]
