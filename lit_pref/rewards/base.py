"""What all rewards share: versions, checked scoring, and the error that names the culprit."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, Protocol, runtime_checkable

from lit_pref.types import Group, PreferenceOracle, Refusal, RewardSource

__all__ = [
    "RewardError",
    "at_least_one",
    "checked_scores",
    "finite_number",
    "measuring",
    "reward_error",
    "settings_version",
    "shown",
    "task_reward",
]

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


def at_least_one(key: str, value: int) -> int:
    """``value``, a whole number from 1.

    Raises:
        Refusal: it is none.
    """
    if not isinstance(value, int) or value < 1:
        raise Refusal(f"reward.{key} must be a whole number from 1, got {value!r}")
    return value


def measuring(source: RewardSource | PreferenceOracle | None) -> RewardSource | None:
    """What a policy is measured with when it was trained by ``source``.

    Noise and normalised parts are left out (``source.plain()``). An oracle measures nothing: a
    policy's responses would win against themselves half of the time.
    """
    if source is None:
        return None
    if callable(plain := getattr(source, "plain", None)):
        return measuring(plain())
    return source if isinstance(source, _Scores) else None


@runtime_checkable
class _Scores(Protocol):
    def score(self, groups: Sequence[Group]) -> list[float]: ...


def checked_scores(source: RewardSource | PreferenceOracle, groups: Sequence[Group]) -> list[float]:
    """Score groups, and make sure that there is one finite number for each response.

    Of an oracle these are win shares; see ``rewards.comparing``.

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
    if not isinstance(source, _Scores):
        from lit_pref.rewards.comparing import checked_comparisons, win_shares

        compared = checked_comparisons(source, groups)
        parts = zip(groups, compared, strict=True)
        return [share for g, c in parts for share in win_shares(len(g.responses), c)]
    try:
        scores = list(source.score(groups))
    except RewardError:
        raise  # a part of this reward has already named the culprit
    except Exception as error:
        group, remark, cause = _find_culprit(source, groups, error)
        what = f"it raised {type(cause).__name__}: {cause}"
        raise reward_error(source, what, group, remark) from cause
    if len(scores) != len(flat):
        what = f"expected {len(flat)} scores, one per response, got {len(scores)}"
        raise reward_error(source, what, *_find_miscounted(source, groups))
    out = []
    for (group, k), score in zip(flat, scores, strict=True):
        number = finite_number(score)
        if number is None:
            what = f"expected a finite number, got {shown(score)} of type {type(score).__name__}"
            raise reward_error(source, what, _only(group, k))
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


def finite_number(score: Any) -> float | None:
    """A finite Python float; None for NaN, infinities and what is no number (text is none)."""
    if not isinstance(score, Real) and callable(getattr(score, "item", None)):
        try:
            score = score.item()  # a tensor or array with one element
        except Exception:
            return None
    try:
        number = float(score) if isinstance(score, Real) else math.nan
    except OverflowError:  # an integer beyond the range of floats
        return None
    return number if math.isfinite(number) else None


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


def reward_error(source: Any, what: str, group: Group, remark: str = "") -> RewardError:
    """An error that names the reward, the prompt and the first response of ``group``.

    Args:
        source: has ``name`` and ``version``.
        what: what went wrong.
        group: whose first response is to blame.
        remark: put behind the response.
    """
    prompt = group.prompt
    place = f", {prompt.file}:{prompt.row}" if prompt.file else ""
    response = shown(group.responses[0].text) if group.responses else "(none)"
    return RewardError(
        f"reward {source.name!r} (version {source.version}) failed: {what}\n"
        f"  prompt (id {prompt.id}{place}): {shown(prompt.text)}\n"
        f"  response: {response}{remark}"
    )


def shown(value: Any) -> str:
    """A value as Python writes it, cut to what fits a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
