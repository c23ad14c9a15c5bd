"""Asking a ``PreferenceOracle``: which pairs, checked answers, win shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeGuard

from lit_pref.rewards.base import RewardError, finite_number, reward_error, shown
from lit_pref.types import Comparison, Group, PreferenceOracle

__all__ = [
    "checked_answers",
    "checked_comparisons",
    "is_oracle",
    "planned_pairs",
    "win_shares",
]


def is_oracle(source: Any) -> TypeGuard[PreferenceOracle]:
    """Whether it compares and does not score."""
    return callable(getattr(source, "compare", None)) and not hasattr(source, "score")


def planned_pairs(count: int, opponents: int | None = None) -> list[tuple[int, int]]:
    """Which of ``count`` responses are compared.

    Args:
        count: responses of a group.
        opponents: each response is compared with the next so many in a circle, so that every one
            is compared equally often; None: with all others.

    Returns:
        Pairs (first, second), each unordered pair at most once.

    Example:
        >>> planned_pairs(4, 1)
        [(0, 1), (1, 2), (2, 3), (3, 0)]
        >>> planned_pairs(2)
        [(0, 1)]
    """
    if opponents is None or opponents >= count // 2:
        return [(i, j) for i in range(count) for j in range(i + 1, count)]
    return [(i, (i + d) % count) for d in range(1, opponents + 1) for i in range(count)]


def win_shares(count: int, comparisons: Sequence[Sequence[Any]]) -> list[float]:
    """Mean probability of winning of each response over those that it was compared with.

    ``share_i = mean_j P(i beats j)``; 1/2 for a response that was not compared.

    Args:
        count: responses of the group.
        comparisons: (first, second, P(first is better)).
    """
    won, asked = [0.0] * count, [0] * count
    for first, second, p in comparisons:
        won[first] += p
        won[second] += 1 - p
        asked[first] += 1
        asked[second] += 1
    return [w / n if n else 0.5 for w, n in zip(won, asked, strict=True)]


def checked_comparisons(oracle: PreferenceOracle, groups: Sequence[Group]) -> list[list[list[Any]]]:
    """Compare the responses of each group.

    Args:
        oracle: what compares.
        groups: groups with their responses.

    Returns:
        For each group ``[first, second, P(first is better)]`` of every pair that was compared.

    Raises:
        RewardError: the oracle raised, or returned the wrong number of answers, or one that is not
            in [0, 1].
    """
    opponents = getattr(oracle, "opponents", None)
    questions = [
        Comparison(group=group, first=i, second=j)
        for group in groups
        for i, j in planned_pairs(len(group.responses), opponents)
    ]
    answers = iter(checked_answers(oracle, questions))
    return [
        [[i, j, next(answers)] for i, j in planned_pairs(len(group.responses), opponents)]
        for group in groups
    ]


def checked_answers(oracle: PreferenceOracle, questions: Sequence[Comparison]) -> list[float]:
    """P(first is better) of each comparison, each a number in [0, 1].

    Raises:
        RewardError: see ``checked_comparisons``.
    """
    if not questions:
        return []
    try:
        answers = list(oracle.compare(questions))
    except RewardError:
        raise  # it has already named the culprit
    except Exception as error:
        question, cause = _find_culprit(oracle, questions, error)
        what = f"it raised {type(cause).__name__}: {cause}"
        raise _error(oracle, what, question) from cause
    if len(answers) != len(questions):
        what = f"expected {len(questions)} answers, one per comparison, got {len(answers)}"
        raise _error(oracle, what, questions[0])
    out = []
    for question, answer in zip(questions, answers, strict=True):
        number = finite_number(answer)
        if number is None or not 0 <= number <= 1:
            what = (
                "expected the probability in [0, 1] that the first response is better, got "
                f"{shown(answer)} of type {type(answer).__name__}"
            )
            raise _error(oracle, what, question)
        out.append(number)
    return out


def _find_culprit(
    oracle: PreferenceOracle, questions: Sequence[Comparison], error: Exception
) -> tuple[Comparison, Exception]:
    """The first question that fails alone, and its exception."""
    for question in questions:
        try:
            oracle.compare([question])
        except Exception as alone:
            return question, alone
    return questions[0], error


def _error(oracle: PreferenceOracle, what: str, question: Comparison) -> Exception:
    responses = question.group.responses
    pair = replace(
        question.group, responses=[responses[question.first], responses[question.second]]
    )
    return reward_error(oracle, what, pair, f"\n  against: {shown(pair.responses[1].text)}")
