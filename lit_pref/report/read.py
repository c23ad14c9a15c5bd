"""Reading a run directory, whole or broken: what can be read is read, the rest is named.

A report is wanted most when a run went wrong, so no missing, cut or damaged file raises here. Each
leaves a sentence in ``RunRecord.problems``. Only a folder that is no run directory is refused.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lit_pref.report.samples import Comparison, compare
from lit_pref.report.table import measures_accuracy
from lit_pref.types import Refusal

__all__ = ["MetricsTable", "RunRecord", "read_metrics", "read_run"]

Cell = int | float | str | None

_MARKERS = ("config.yaml", "metrics.csv", "summary.json")
_IDENTITY = ("objective", "data", "task", "model", "seed")


@dataclass(kw_only=True, slots=True)
class MetricsTable:
    """The rows of ``metrics.csv``.

    Attributes:
        columns: names in file order.
        rows: one list of cells per line of the file, as long as ``columns``. An empty cell is
            None, a number that JSON cannot hold (``nan``, ``inf``) keeps its text.
    """

    columns: list[str] = field(default_factory=list)
    rows: list[list[Cell]] = field(default_factory=list)

    def column(self, name: str) -> list[Cell]:
        """The cells of one column, None everywhere when there is no such column."""
        if name not in self.columns:
            return [None] * len(self.rows)
        index = self.columns.index(name)
        return [row[index] for row in self.rows]

    def points(self, x: str, y: str) -> list[tuple[float, float]]:
        """The rows where both columns hold a finite number, as (x, y) in file order."""
        pairs = zip(self.column(x), self.column(y), strict=True)
        return [
            (a, b) for a, b in pairs if isinstance(a, (int, float)) and isinstance(b, (int, float))
        ]

    def present(self, names: Sequence[str]) -> list[str]:
        """Those of ``names`` that have at least one finite number."""
        return [n for n in names if any(isinstance(c, (int, float)) for c in self.column(n))]


@dataclass(kw_only=True, slots=True)
class RunRecord:
    """Everything that a report needs to know of one run.

    Attributes:
        path: the run directory.
        config_text: ``config.yaml`` as it stands, empty when missing.
        config: the same, parsed; empty when it cannot be.
        environment: ``environment.json``.
        summary: ``summary.json``.
        metrics: ``metrics.csv``.
        samples: prompts before and after training.
        problems: one sentence for each thing that is missing or damaged.
    """

    path: Path
    config_text: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: MetricsTable = field(default_factory=MetricsTable)
    samples: Comparison = field(default_factory=Comparison)
    problems: list[str] = field(default_factory=list)

    def identity(self) -> dict[str, str]:
        """Objective, data, task, model and seed: from the summary, else from the config."""
        out = {}
        for key in _IDENTITY:
            value = self.summary.get(key)
            out[key] = _name(self.config.get(key) if value is None else value)
        return out

    @property
    def status(self) -> str:
        """The summary's status, ``"unknown"`` when there is none."""
        return _name(self.summary.get("status")) if self.summary.get("status") else "unknown"


def read_run(run_dir: str | Path, *, prompts: int = 10) -> RunRecord:
    """Read a run directory.

    Args:
        run_dir: the directory of one run.
        prompts: how many prompts to match before and after, in file order.

    Returns:
        The record; ``problems`` says what was missing.

    Raises:
        Refusal: ``run_dir`` is not a run directory.
    """
    path = Path(run_dir)
    if not path.is_dir():
        raise Refusal(
            f"expected a run directory, got {str(path)!r}, which "
            f"{'is a file' if path.exists() else 'does not exist'}. "
            "Give the folder that holds config.yaml, for example runs/<date>/<time>_dpo_onpolicy."
        )
    if not any((path / name).is_file() for name in _MARKERS):
        raise Refusal(
            f"expected a run directory, got {str(path)!r}, which holds none of "
            f"{', '.join(_MARKERS)}. Give the folder that train.py wrote (hydra.run.dir)."
        )
    run = RunRecord(path=path)
    run.config_text = _text(path / "config.yaml", run.problems) or ""
    run.config = _parse_yaml(run.config_text, run.problems)
    run.environment = _json_object(path / "environment.json", run.problems)
    run.summary = _json_object(path / "summary.json", run.problems)
    run.metrics = read_metrics(path / "metrics.csv", problems=run.problems)
    if not measures_accuracy(run.summary):  # a reward model samples nothing
        run.samples = compare(path, prompts=prompts, problems=run.problems)
    return run


def read_metrics(path: str | Path, *, problems: list[str] | None = None) -> MetricsTable:
    """Read a ``metrics.csv`` that a crash may have cut anywhere.

    Every line after the header gives exactly one row. Of a last line without its line break only
    the cells before the cut are trusted: the one at the cut may have lost digits.

    Args:
        path: the file.
        problems: gets a sentence for each thing that is wrong.
    """
    problems = [] if problems is None else problems
    path = Path(path)
    text = _text(path, problems)
    if text is None:
        return MetricsTable()
    whole = text.endswith("\n")
    lines = list(csv.reader(text.replace("\0", "").splitlines()))
    if not lines or (len(lines) == 1 and not whole):
        problems.append(f"{path.name} is empty: nothing was logged.")
        return MetricsTable()
    table = MetricsTable(columns=[name.strip() for name in lines[0]])
    width = len(table.columns)
    longer = 0
    for number, line in enumerate(lines[1:], start=2):
        if number == len(lines) and not whole:
            problems.append(
                f"The last line of {path.name} (line {number}) was cut while it was written; "
                "its last cell is left out."
            )
            line = line[:-1]
        elif not line:
            continue
        longer += len(line) > width
        row: list[Cell] = [_cell(text) for text in line[:width]]
        table.rows.append(row + [None] * (width - len(row)))
    if longer:
        problems.append(f"{longer} rows of {path.name} have more cells than the header has names.")
    if not table.rows:
        problems.append(f"{path.name} has a header and no rows: no step was logged.")
    return table


def _cell(text: str) -> Cell:
    text = text.strip()
    if not text:
        return None
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        # nan and inf are no JSON: their text says what was logged and draws no point.
        return value if abs(value) < float("inf") else text
    return text


def _text(path: Path, problems: list[str]) -> str | None:
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        problems.append(f"{path.name} is missing.")
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}.")
    return None


def _json_object(path: Path, problems: list[str]) -> dict[str, Any]:
    text = _text(path, problems)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        problems.append(f"{path.name} is not JSON ({error}).")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} holds a {type(value).__name__}, not an object.")
        return {}
    return value


def _parse_yaml(text: str, problems: list[str]) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        problems.append(f"config.yaml is not YAML ({' '.join(str(error).split())}).")
        return {}
    return value if isinstance(value, dict) else {}


def _name(value: Any) -> str:
    """A short name for a config value: itself, or what a config group says of itself."""
    if isinstance(value, dict):
        value = value.get("name") or str(value.get("_target_", "")).rpartition(".")[2] or None
    return "unknown" if value is None else str(value)
