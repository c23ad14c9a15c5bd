"""A sweep directory: its cells, and what they say together. Read from files alone.

``sweep.json`` names the cells that were asked for, with those that could not be composed. How each
ended is in its ``summary.json``, whichever process ran it. Folders of cells that no list names
(another sweeper made them) are found by what is in them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lit_pref.report.statistics import Estimate, estimate
from lit_pref.types import Refusal

__all__ = ["Cell", "Setting", "SweepRecord", "is_sweep", "read_sweep", "split_overrides"]

SEED = "seed"
IDENTITY = ("objective", "data", "task", "model", "seed")


@dataclass(kw_only=True, slots=True)
class Cell:
    """One job of a sweep.

    Attributes:
        number: its place in the sweep.
        folder: its run directory, relative to the sweep's; empty when it was never started.
        overrides: what the command line set for it, by key.
        summary: its ``summary.json``; empty when there is none.
        status: ``finished``, ``refused``, ``failed``, ``interrupted``, or ``missing``: it was
            never run, or was killed before it could say how it ended.
        reason: one sentence for anything but ``finished``.
    """

    number: int
    folder: str = ""
    overrides: dict[str, str] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    status: str = "missing"
    reason: str = ""

    @property
    def seed(self) -> str | None:
        """As given, else as the run had it; None where neither says."""
        seed = self.overrides.get(SEED, self.summary.get(SEED))
        return None if seed is None else str(seed)


@dataclass(kw_only=True, slots=True)
class Setting:
    """Cells that differ in their seed alone.

    Attributes:
        values: the varying overrides, without the seed.
        cells: the cells, in order, one of each seed.
        repeated: further cells with a seed that is there already; means are over seeds.
    """

    values: tuple[str, ...]
    cells: list[Cell] = field(default_factory=list)
    repeated: int = 0

    def add(self, cell: Cell) -> None:
        """Take a cell in; of a seed that comes again, such as the default one, what finished."""
        seed = cell.seed
        for place, known in enumerate(self.cells):
            if seed is not None and known.seed == seed:
                self.repeated += 1
                if known.status != "finished":
                    self.cells[place] = cell
                return
        self.cells.append(cell)

    @property
    def finished(self) -> int:
        """How many seeds finished."""
        return sum(cell.status == "finished" for cell in self.cells)

    def measure(self, key: str) -> Estimate:
        """Mean and interval of a number of the summaries, over the seeds that finished."""
        found = [c.summary.get(key) for c in self.cells if c.status == "finished"]
        return estimate([float(v) for v in found if isinstance(v, (int, float))])

    def notes(self) -> list[str]:
        """Why the others have no number: each status with its reason, once."""
        rest = [c for c in self.cells if c.status != "finished"]
        counted: dict[str, int] = {}
        for cell in rest:
            said = cell.status + (f": {cell.reason}" if cell.reason else "")
            counted[said] = counted.get(said, 0) + 1
        many = len(self.cells) > 1
        notes = [
            f"{n} of {len(self.cells)} {said}" if many else said for said, n in counted.items()
        ]
        if self.repeated:
            notes.append(f"{self.repeated} more with the same seeds, not counted")
        return notes


@dataclass(kw_only=True, slots=True)
class SweepRecord:
    """A sweep as it stands.

    Attributes:
        path: the sweep directory.
        cells: all cells, in order.
        varying: override keys that have more than one value among the cells.
    """

    path: Path
    cells: list[Cell] = field(default_factory=list)
    varying: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """How many cells have each status, most first."""
        found: dict[str, int] = {}
        for cell in self.cells:
            found[cell.status] = found.get(cell.status, 0) + 1
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    @property
    def columns(self) -> list[str]:
        """The varying keys without the seed."""
        return [key for key in self.varying if key != SEED]

    def settings(self) -> list[Setting]:
        """The cells grouped over seeds, in order of their first cell."""
        groups: dict[tuple[str, ...], Setting] = {}
        for cell in self.cells:
            values = tuple(cell.overrides.get(key, "") for key in self.columns)
            groups.setdefault(values, Setting(values=values)).add(cell)
        return list(groups.values())

    def fixed(self) -> dict[str, str]:
        """The overrides that all cells share."""
        first = self.cells[0].overrides if self.cells else {}
        return {k: v for k, v in first.items() if k not in self.varying and k != SEED}


# --------------------------------------------------------------------------- reading


def is_sweep(folder: str | Path) -> bool:
    """Whether a folder holds a sweep rather than one run."""
    folder = Path(folder)
    return (folder / "sweep.json").is_file() or (folder / "multirun.yaml").is_file()


def read_sweep(folder: str | Path) -> SweepRecord:
    """Read a sweep directory.

    Raises:
        Refusal: it is not one.
    """
    path = Path(folder)
    if not is_sweep(path):
        raise Refusal(
            f"expected a sweep directory, got {str(path)!r}, which holds no sweep.json; give the "
            "folder that a command with -m printed (hydra.sweep.dir)"
        )
    cells = _listed(path)
    known = {cell.folder for cell in cells}
    cells += [c for c in _found(path, first=len(cells)) if c.folder not in known]
    for cell in cells:
        _look(path, cell)
    keys = list(dict.fromkeys(key for cell in cells for key in cell.overrides))
    varying = [k for k in keys if len({cell.overrides.get(k) for cell in cells}) > 1]
    return SweepRecord(path=path, cells=cells, varying=varying)


def _listed(path: Path) -> list[Cell]:
    listed = _json(path / "sweep.json").get("cells", [])
    cells = []
    for entry in listed:
        cell = Cell(number=entry["number"], folder=entry["folder"] or "")
        cell.overrides = split_overrides(entry["overrides"])
        if entry.get("refused"):
            cell.status, cell.reason = "refused", entry["refused"]
        cells.append(cell)
    return cells


def _found(path: Path, *, first: int) -> Iterator[Cell]:
    """Run directories below a sweep's, in the order of the numbers in their names."""
    folders = {f.parent for name in ("summary.json", "config.yaml") for f in path.rglob(name)}
    folders = {f.parent if f.name == ".hydra" else f for f in folders} - {path}
    runs = sorted(
        (f.relative_to(path).as_posix() for f in folders if "export" not in f.parts),
        key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)],
    )
    for place, name in enumerate(runs, start=first):
        try:
            given = yaml.safe_load((path / name / ".hydra" / "overrides.yaml").read_text())
        except (OSError, ValueError, yaml.YAMLError):
            given = []
        yield Cell(number=place, folder=name, overrides=split_overrides(given or []))


def _look(path: Path, cell: Cell) -> None:
    """How the cell ended."""
    if not cell.folder or cell.status == "refused":
        return
    cell.summary = _json(path / cell.folder / "summary.json")
    if not cell.overrides:
        named = {key: cell.summary.get(key) for key in IDENTITY}
        cell.overrides = {key: str(v) for key, v in named.items() if v is not None}
    cell.status = str(cell.summary.get("status", "missing"))
    cell.reason = str(cell.summary.get("reason") or "")


def split_overrides(overrides: list[str]) -> dict[str, str]:
    """``key=value`` strings by key; Hydra's own keys are left out."""
    out = {}
    for override in overrides:
        key, _, value = str(override).lstrip("+").partition("=")
        if not key.startswith("hydra") and key != "sweep.resume":
            out[key] = value
    return out


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
