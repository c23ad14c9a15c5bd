"""Matching the samples of one run before and after training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Comparison", "PromptPair", "compare"]


@dataclass(kw_only=True, slots=True)
class PromptPair:
    """One prompt with its groups before and after training (lines of ``samples.jsonl`` form)."""

    prompt_id: Any
    before: dict[str, Any]
    after: dict[str, Any]


@dataclass(kw_only=True, slots=True)
class Comparison:
    """Prompts before and after training.

    Attributes:
        source: where the samples come from, in words.
        before, after: when they were made, in words (``"step 0"``).
        pairs: the matched prompts.
    """

    source: str = ""
    before: str = ""
    after: str = ""
    pairs: list[PromptPair] = field(default_factory=list)


def compare(run_dir: Path, *, prompts: int, problems: list[str]) -> Comparison:
    """Match prompts by id: first and last evaluation, else first and last round.

    Args:
        run_dir: the run directory.
        prompts: how many prompts at most, in file order.
        problems: gets a sentence for each thing that is missing or damaged.
    """
    key, source, path = "step", "validation prompts", run_dir / "validation.jsonl"
    if not path.is_file():
        key, source, path = "round", "training samples", run_dir / "samples.jsonl"
    if not path.is_file():
        problems.append("validation.jsonl and samples.jsonl are missing: no samples to show.")
        return Comparison()
    ends = _first_and_last(path, key, problems)
    if ends is None:
        problems.append(f"{path.name} holds no groups: no samples to show.")
        return Comparison()
    (first, before), (last, after) = ends
    if first == last:
        problems.append(
            f"{path.name} holds {key} {first} alone: there is no later sample to compare with."
        )
        return Comparison()
    matched = [i for i in before if i in after][:prompts]
    if not matched:
        problems.append(
            f"No prompt of {key} {first} in {path.name} occurs again in {key} {last}: "
            "nothing to compare."
        )
    pairs = [PromptPair(prompt_id=i, before=before[i], after=after[i]) for i in matched]
    return Comparison(source=source, before=f"{key} {first}", after=f"{key} {last}", pairs=pairs)


_Ends = tuple[int, dict[Any, dict[str, Any]]]


def _first_and_last(path: Path, key: str, problems: list[str]) -> tuple[_Ends, _Ends] | None:
    """The groups with the smallest and with the largest ``key``, by prompt id, streaming."""
    first: _Ends | None = None
    last: _Ends | None = None
    for group in _groups(path, problems):
        at = group.get(key)
        if not isinstance(at, int):
            continue
        prompt = str(group.get("prompt_id"))
        if first is None or at < first[0]:
            first = (at, {})
        if last is None or at > last[0]:
            last = (at, {})
        # The first group of a prompt stays; a prompt may occur twice in one round.
        for end in (first, last):
            if at == end[0]:
                end[1].setdefault(prompt, group)
    return None if first is None or last is None else (first, last)


def _groups(path: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """The groups of a samples file that can be read and have a response."""
    bad = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                group = json.loads(line)
            except ValueError:
                bad += 1
                continue
            responses = group.get("responses") if isinstance(group, dict) else None
            if isinstance(responses, list) and responses and isinstance(responses[0], dict):
                yield group
            else:
                bad += 1
    if bad:
        lines_are = "line of {} is no group" if bad == 1 else "lines of {} are no groups"
        problems.append(f"{bad} {lines_are.format(path.name)} (cut or damaged): left out.")
