"""Instructions whose fulfilment a program can check: the true reward of ``task=instructions``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lit_pref.rewards.base import settings_version
from lit_pref.types import Group

__all__ = ["CHECKS", "InstructionReward", "satisfied"]


_BULLET = re.compile(r"\s*(?:[-*\u2022]|\d+[.)])\s+\S")


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['\u2019-][^\W_]+)*", text)


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.I) is not None


def _bullets(text: str) -> int:
    return sum(
        re.match(r"\s*(?:[-*\u2022]|\d+[.)])\s+\S", line) is not None for line in text.splitlines()
    )


def _json(text: str) -> Any:
    """The JSON value that the text is, a code fence around it allowed; None if it is none."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", text, re.S)
    try:
        return json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return None


CHECKS: dict[str, tuple[tuple[str, type], Callable[[str, Any], bool]]] = {
    "max_words": (("count", int), lambda text, n: 0 < len(_words(text)) <= n),
    "min_words": (("count", int), lambda text, n: len(_words(text)) >= n),
    "require": (("words", list), lambda text, words: all(_has_word(text, w) for w in words)),
    "forbid": (
        ("words", list),
        lambda text, words: bool(text.strip()) and not any(_has_word(text, w) for w in words),
    ),
    "bullets": (("count", int), lambda text, n: _bullets(text) == n),
    "json": (
        ("keys", list),
        lambda text, keys: isinstance(value := _json(text), dict) and all(k in value for k in keys),
    ),
    "lowercase": (("value", bool), lambda text, _: text.lower() == text and text.upper() != text),
    "uppercase": (("value", bool), lambda text, _: text.upper() == text and text.lower() != text),
    "starts_with": (("text", str), lambda text, start: text.lstrip().startswith(start)),
    "ends_with": (("text", str), lambda text, end: text.rstrip().endswith(end)),
    "no_commas": (("value", bool), lambda text, _: bool(text.strip()) and "," not in text),
    "paragraphs": (
        ("count", int),
        lambda text, n: len([p for p in re.split(r"\n\s*\n", text) if p.strip()]) == n,
    ),
}
"""Kind of check -> (its argument and type, from text and argument to whether it is satisfied)."""


def satisfied(text: str, check: Mapping[str, Any]) -> bool:
    """Whether a response does what one instruction asks for.

    An empty response satisfies nothing.

    Args:
        text: the response.
        check: ``{"kind": ..., argument: ...}`` with one of ``CHECKS``.

    Raises:
        ValueError: an unknown kind, or an argument that is missing or of another type.

    Example:
        >>> satisfied("all low", {"kind": "lowercase"})
        True
    """
    kind = check.get("kind") if isinstance(check, Mapping) else None
    if kind not in CHECKS:
        raise ValueError(f"expected a check of a kind among {', '.join(CHECKS)}; got {check!r}")
    (name, expected), holds = CHECKS[kind]
    value = check.get(name, True if expected is bool else None)
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise ValueError(f"check {kind!r} needs {name!r} ({expected.__name__}); got {check!r}")
    if isinstance(value, list) and not all(isinstance(v, str) and v for v in value):
        raise ValueError(f"check {kind!r} needs {name!r} to be a list of words; got {check!r}")
    return bool(text.strip()) and holds(text, value)


class InstructionReward:
    """Share of a prompt's instructions that the response satisfies, in [0, 1].

    The prompt's row has a column ``checks``: a list of ``{"kind": ..., ...}``; see ``CHECKS``.

    Args:
        column: its name.
    """

    name = "instructions"

    def __init__(self, *, column: str = "checks") -> None:
        self.column = column
        self.version = settings_version(column=column, checks=sorted(CHECKS), format=1)

    def score(self, groups: Sequence[Group]) -> list[float]:
        """One number per response, groups in order, responses in order.

        Raises:
            ValueError: a prompt without checks, or with one that is not understood.
        """
        out = []
        for group in groups:
            checks = group.prompt.columns.get(self.column)
            if not isinstance(checks, list) or not checks:
                raise ValueError(
                    f"the prompt has no list of checks in column {self.column!r}; got {checks!r}"
                )
            for response in group.responses:
                met = [satisfied(response.text, check) for check in checks]
                out.append(sum(met) / len(met))
        return out
