"""What all rewards share: versions, checked scoring, and the error that names the culprit."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from lit_pref.types import Group, Refusal, RewardSource

__all__ = ["RewardError", "checked_scores", "settings_version", "task_reward"]

_SHOWN = 200  # characters of a prompt or response in an error message


class RewardError(RuntimeError):
    """A reward failed while scoring; names the reward, the prompt, the response and the cause."""


def settings_version(**settings: Any) -> str:
    """A short digest of a reward's settings: equal settings give equal versions.

    Args:
        settings: whatever changes the scores, as JSON values.

    Returns:
        12 hexadecimal characters.
    """
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def checked_scores(source: RewardSource, groups: Sequence[Group]) -> list[float]:
    """Score groups, and make sure that there is one finite number for each response.

    When a call fails for many groups, each group (then each response) is scored again alone to
    name the one at fault; those calls are made only on the way to the error.

    Args:
        source: the reward.
        groups: groups with their responses.

    Returns:
        One finite number per response, groups in order, responses in order.

    Raises:
        RewardError: the reward raised, or returned the wrong number of scores, something that is
            not a number, NaN or an infinity. Its cause is the original exception, if any.
    """
    flat = [(group, k) for group in groups for k in range(len(group.responses))]
    if not flat:
        return []
    try:
        scores = list(source.score(groups))
    except RewardError:
        raise  # a part of this reward has already named the culprit
    except Exception as error:
        group, remark, cause = _find_culprit(source, groups, error)
        what = f"it raised {type(cause).__name__}: {cause}"
        raise _error(source, what, group, remark) from cause
    if len(scores) != len(flat):
        what = f"expected {len(flat)} scores, one per response, got {len(scores)}"
        raise _error(source, what, *_find_miscounted(source, groups))
    out = []
    for (group, k), score in zip(flat, scores, strict=True):
        number = _number(score)
        if number is None or not math.isfinite(number):
            what = f"expected a finite number, got {_short(score)} of type {type(score).__name__}"
            raise _error(source, what, _only(group, k))
        out.append(number)
    return out


def task_reward(task: Any) -> RewardSource:
    """The task's own true reward (``reward=task``).

    Args:
        task: a ``Task``.

    Raises:
        Refusal: the task has none.
    """
    source = task.true_reward()
    if source is None:
        raise Refusal(
            f"reward=task needs a task with a true reward; task {task.name!r} has none. "
            "Choose another reward, for example reward=length or reward=callable"
        )
    return source


def _number(score: Any) -> float | None:
    """A Python float, or None when ``score`` is no number (text that looks like one is none)."""
    if not isinstance(score, Real) and callable(getattr(score, "item", None)):
        try:
            score = score.item()  # a tensor or array with one element
        except Exception:
            return None
    try:
        return float(score) if isinstance(score, Real) else None
    except OverflowError:  # an integer beyond the range of floats
        return math.inf


def _only(group: Group, index: int) -> Group:
    return replace(group, responses=[group.responses[index]])


def _find_culprit(
    source: RewardSource, groups: Sequence[Group], error: Exception
) -> tuple[Group, str, Exception]:
    """The smallest part that fails alone, a remark on it, and its exception."""
    for group in groups:
        try:
            source.score([group])
        except Exception as alone:
            for k in range(len(group.responses)):
                try:
                    source.score([_only(group, k)])
                except Exception as single:
                    return _only(group, k), "", single
            return group, f" (first of {len(group.responses)}; no response fails alone)", alone
    return groups[0], f" (first of {len(groups)} prompts; none fails alone)", error


def _find_miscounted(source: RewardSource, groups: Sequence[Group]) -> tuple[Group, str]:
    """The first group for which the reward alone returns too many or too few scores."""
    for group in groups:
        count = len(group.responses)
        try:
            if len(list(source.score([group]))) != count:
                return group, f" (first of {count})"
        except Exception:
            return group, f" (first of {count})"
    return groups[0], f" (first of {len(groups)} prompts; the count is right for each alone)"


def _error(source: RewardSource, what: str, group: Group, remark: str = "") -> RewardError:
    prompt = group.prompt
    place = f", {prompt.file}:{prompt.row}" if prompt.file else ""
    response = _short(group.responses[0].text) if group.responses else "(none)"
    return RewardError(
        f"reward {source.name!r} (version {source.version}) failed: {what}\n"
        f"  prompt (id {prompt.id}{place}): {_short(prompt.text)}\n"
        f"  response: {response}{remark}"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
