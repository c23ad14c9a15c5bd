"""What a file holds, over all of its rows: lengths, duplicates, ties, what is dropped and why."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from lit_pref.formats.reading import Reading
from lit_pref.formats.rows import Row, shorten
from lit_pref.types import Group

__all__ = ["Histogram", "Survey", "histogram", "roles", "survey"]


@dataclass(kw_only=True, slots=True)
class Survey:
    """What was seen in a file.

    Attributes:
        shown: the first usable groups.
        usable: how many there are.
        lengths: tokens of every prompt and response, by role.
        prompts: different prompts.
        duplicates: (row, earlier row that says the same).
        contradictions: (row, earlier row that prefers the opposite).
        ties: rows whose responses are ranked or scored alike, dropped or not.
        dropped: (place without the file, reason, beginning of the row).
    """

    shown: list[Group] = field(default_factory=list)
    usable: int = 0
    lengths: dict[str, array[int]] = field(default_factory=dict)
    prompts: int = 0
    duplicates: list[tuple[int, int]] = field(default_factory=list)
    contradictions: list[tuple[int, int]] = field(default_factory=list)
    ties: list[int] = field(default_factory=list)
    dropped: list[tuple[str, str, str]] = field(default_factory=list)


def survey(reading: Reading, *, rows: int) -> Survey:
    """Read a whole file.

    Args:
        reading: how; its ``layout`` and ``drops`` are filled.
        rows: how many usable groups to keep.

    Raises:
        Refusal: the file is not what it should be.
    """
    out = Survey()
    seen: dict[bytes, int] = {}
    prompts: set[bytes] = set()
    for outcome in reading.outcomes():
        group = outcome.group
        if group is None:
            assert outcome.reason is not None
            place = outcome.row.place.removeprefix(f"{outcome.row.file}, ")
            out.dropped.append((place, outcome.reason, _beginning(outcome.row)))
            if outcome.reason == "tie":
                out.ties.append(outcome.row.number)
            continue
        out.usable += 1
        if len(out.shown) < rows:
            out.shown.append(group)
        _measure(out, group)
        prompts.add(_digest([group.prompt.ids]))
        _compare(out, group, seen)
        if _tied(group):
            out.ties.append(outcome.row.number)
    out.prompts = len(prompts)
    return out


def roles(group: Group) -> list[str]:
    """What to call the responses of a group."""
    ranks = [r.rank for r in group.responses]
    if ranks == [0, 1]:
        return ["chosen", "rejected"]
    return ["response"] * len(ranks)


def _measure(out: Survey, group: Group) -> None:
    out.lengths.setdefault("prompt", array("q")).append(len(group.prompt.ids))
    for role, response in zip(roles(group), group.responses, strict=True):
        out.lengths.setdefault(role, array("q")).append(len(response.ids))


def _compare(out: Survey, group: Group, seen: dict[bytes, int]) -> None:
    ids = [r.ids for r in group.responses]
    row = group.prompt.row or 0
    key = _digest([group.prompt.ids, *ids])
    if key in seen:
        out.duplicates.append((row, seen[key]))
    elif len(ids) == 2 and roles(group) == ["chosen", "rejected"]:
        opposite = _digest([group.prompt.ids, *ids[::-1]])
        if opposite in seen:
            out.contradictions.append((row, seen[opposite]))
    seen.setdefault(key, row)


def _tied(group: Group) -> bool:
    if len(group.responses) < 2:
        return False
    ranks = {r.rank for r in group.responses}
    rewards = {r.reward for r in group.responses}
    scored = None not in rewards
    return (scored and len(rewards) == 1) or (
        None not in ranks and len(ranks) < len(group.responses)
    )


def _digest(parts: Sequence[Sequence[int]]) -> bytes:
    text = "|".join(" ".join(map(str, part)) for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=12).digest()


def _beginning(row: Row) -> str:
    return shorten(json.dumps(row.data, default=str)[:200])[1:-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Lengths in bins of equal width.

    Attributes:
        edges: the first length of each bin, and one more than the last length of the last.
        counts: how many are in each.
        median, p95, largest: over all of them.
    """

    edges: list[int]
    counts: list[int]
    median: int
    p95: int
    largest: int


def histogram(lengths: Sequence[int], *, bins: int = 8) -> Histogram:
    """Count lengths in at most ``bins`` bins of equal whole width.

    Args:
        lengths: at least one.
        bins: number of bins at most.

    Example:
        >>> histogram([1, 2, 2, 9], bins=3).counts
        [3, 0, 1]
    """
    ordered = sorted(lengths)
    low, high = ordered[0], ordered[-1]
    width = -(-(high - low + 1) // bins)
    count = -(-(high - low + 1) // width)
    counts = [0] * count
    for length in ordered:
        counts[(length - low) // width] += 1
    last = len(ordered) - 1
    return Histogram(
        edges=[low + width * n for n in range(count + 1)],
        counts=counts,
        median=ordered[last // 2],
        p95=ordered[round(last * 0.95)],
        largest=high,
    )
