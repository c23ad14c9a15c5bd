"""Criteria of figures: read from files that are committed before the run, and applied."""

from __future__ import annotations

import hashlib
import math
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lit_pref.errors import Refusal

__all__ = ["VERDICTS", "Check", "Criterion", "Outcome", "interval", "verdict"]

Verdict = Literal["holds", "holds_partly", "does_not_hold"]
VERDICTS = ("holds", "holds_partly", "does_not_hold")

_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Check:
    """One part of a criterion: a number, its bounds, and whether the claim rests on it.

    Attributes:
        value: name of the number, as the figure computes it.
        says: the same in words.
        at_least: lower bound (None: none).
        at_most: upper bound (None: none).
        central: without it the claim does not hold at all.
        slack: by how much the bounds are moved in the quick version of the tests.
    """

    value: str
    says: str
    at_least: float | None = None
    at_most: float | None = None
    central: bool = False
    slack: float = 0.0

    def holds(self, number: float, *, quick: bool = False) -> bool:
        """Whether a number lies within the bounds; one that is not finite never does."""
        if math.isnan(number):
            return False
        slack = self.slack if quick else 0.0
        low = -math.inf if self.at_least is None else self.at_least - slack
        high = math.inf if self.at_most is None else self.at_most + slack
        return low <= number <= high


@dataclass(frozen=True)
class Criterion:
    """The content of one criterion file.

    Attributes:
        name: of the figure.
        title: of its page.
        claims: numbers of the paper's claims it speaks to.
        origin: where its bounds come from.
        tuning: seeds that settings and bounds were chosen with.
        verdict: seeds of the verdict; apart from the others.
        quick: seeds of the quick version in the tests.
        grid: the runs; None where there are none.
        checks: the parts.
        path: the file.
    """

    name: str
    title: str
    claims: tuple[int, ...]
    origin: str
    tuning: tuple[int, ...]
    verdict: tuple[int, ...]
    quick: tuple[int, ...]
    grid: dict[str, Any] | None
    checks: tuple[Check, ...]
    path: Path

    @classmethod
    def read(cls, path: Path) -> Criterion:
        """Read a file.

        Raises:
            Refusal: it does not exist, or its seeds overlap.
        """
        if not path.exists():
            known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
            raise Refusal(f"there is no figure {path.stem!r}; known: {known}")
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
        seeds = saved.get("seeds", {})
        tuning, final = tuple(seeds.get("tuning", ())), tuple(seeds.get("verdict", ()))
        if set(tuning) & set(final):
            raise Refusal(
                f"{path}: seeds {set(tuning) & set(final)} are of both tuning and verdict"
            )
        return cls(
            name=path.stem,
            title=saved["title"],
            claims=tuple(saved.get("claims", ())),
            origin=saved["origin"].strip(),
            tuning=tuning,
            verdict=final,
            quick=tuple(seeds.get("quick", final[:1])),
            grid=saved.get("grid"),
            checks=tuple(Check(**c) for c in saved["checks"]),
            path=path,
        )

    def commit(self) -> str | None:
        """The commit that last changed the file; None if it is changed since, or not in git."""
        changed = _git(self.path, "status", "--porcelain", "--", self.path.name)
        if changed is None or changed:
            return None
        return _git(self.path, "log", "-1", "--format=%H", "--", self.path.name) or None

    def digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def _git(path: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=path.parent, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


# --------------------------------------------------------------------------- verdicts


@dataclass(frozen=True)
class Outcome:
    """One check with its number.

    Attributes:
        check: what was checked.
        values: one number per seed, or one alone.
        mean: of the values; what is compared.
        low: lower end of the 95 % interval of the mean; None for a single value.
        high: its upper end.
        holds: whether the mean is within the bounds.
    """

    check: Check
    values: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    holds: bool


def interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean and 95 % t-interval over seeds; no interval of fewer than two or infinite values."""
    count, mean = len(values), sum(values) / len(values)
    if count < 2 or not all(map(math.isfinite, values)):
        return mean, None, None
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1))
    half = _T95[min(count - 2, len(_T95) - 1)] * spread / math.sqrt(count)
    return mean, mean - half, mean + half


def verdict(
    checks: Sequence[Check], numbers: Mapping[str, Sequence[float]], *, quick: bool = False
) -> tuple[Verdict, list[Outcome]]:
    """Apply a criterion.

    ``holds``: every check does. ``does_not_hold``: none does, or no central one does. Else
    ``holds_partly``.

    Args:
        checks: the parts of the criterion.
        numbers: name -> one number per seed (means are compared), or a single number.
        quick: with the slack of the quick version.
    """
    outcomes = []
    for check in checks:
        values = tuple(float(v) for v in numbers[check.value])
        mean, low, high = interval(values)
        outcomes.append(Outcome(check, values, mean, low, high, check.holds(mean, quick=quick)))
    central = [o.holds for o in outcomes if o.check.central]
    if all(o.holds for o in outcomes):
        return "holds", outcomes
    if not any(o.holds for o in outcomes) or (central and not any(central)):
        return "does_not_hold", outcomes
    return "holds_partly", outcomes
