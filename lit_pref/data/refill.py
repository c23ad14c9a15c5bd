"""Groups without signal: all rewards equal, so that nothing says which response is better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from lit_pref.types import Group, Refusal

__all__ = ["NoSignal", "check_no_signal", "has_signal", "refill"]

NoSignal = Literal["keep", "refill"]


def has_signal(group: Group) -> bool:
    """Whether two rewards of the group differ."""
    return len({r.reward for r in group.responses}) > 1


def check_no_signal(how: str, limit: int, responses: int) -> None:
    """Raise where the parameters cannot work.

    Raises:
        Refusal: an unknown word, a negative limit, or a single response, which never has signal.
    """
    if how not in ("keep", "refill"):
        raise Refusal(f"data.no_signal must be keep or refill, got {how!r}")
    if not isinstance(limit, int) or limit < 0:
        raise Refusal(f"data.refill_limit must be a whole number from 0, got {limit!r}")
    if how == "refill" and responses < 2:
        raise Refusal(
            "data.no_signal=refill compares the responses to a prompt, and "
            f"data.responses_per_prompt={responses}; set it to 2 or more, or data.no_signal=keep"
        )


def refill(
    groups: list[Group], *, limit: int, more: Callable[[int, int, int], Sequence[Group]]
) -> dict[str, float]:
    """Put further groups in place of those without signal, as long as there may be more.

    What stays unfilled keeps its place with weight 0.

    Args:
        groups: the groups of a round; changed in place.
        limit: most further groups.
        more: ``(wave, start, count)`` samples ``count`` further groups, of which ``start`` were
            sampled before in this round in earlier waves.

    Returns:
        Counts by name, for the log.
    """
    empty = [slot for slot, group in enumerate(groups) if not has_signal(group)]
    counts = {"data/groups_without_signal": float(len(empty))}
    drawn = wave = filled = 0
    while empty and drawn < limit:
        found = more(wave, drawn, min(len(empty), limit - drawn))
        drawn, wave = drawn + len(found), wave + 1
        for group in filter(has_signal, found):
            groups[empty.pop(0)] = group
            filled += 1
    for slot in empty:
        groups[slot].weight = 0.0
    counts["data/refill_sampled"] = float(drawn)
    counts["data/refilled"] = float(filled)
    counts["data/unfilled"] = float(len(empty))
    return counts
