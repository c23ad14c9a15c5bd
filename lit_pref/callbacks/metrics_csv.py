"""``metrics.csv``: one row per logged step, append-only, cut back exactly on resume."""

from __future__ import annotations

import csv
import io
import logging
import os
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

__all__ = ["MetricsCSV"]

log = logging.getLogger(__name__)

FIRST = ("step", "samples", "reward_queries", "round", "pass")


class MetricsCSV(Logger):
    """Collects what is logged for a step into one row.

    Values logged for the same step by different callers (the loss window, a validation, a new
    round) share the row, which is written when the next step begins. A metric that appears late
    widens the header; the file is then written again as a whole and renamed into place.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self.columns: list[str] = list(FIRST)
        self.rows = 0
        self.pending: dict[str, float] = {}
        self._file: TextIO | None = None  # open for the next row

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration is in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        step = 0 if step is None else step
        if self.pending and self.pending["step"] != step:
            self._write_pending()
        self.pending.setdefault("step", step)
        for name, value in metrics.items():
            if name in FIRST:  # what training had used when it reached this step
                self.pending.setdefault(name, value)
            elif name != "epoch":
                self.pending[name] = value

    @rank_zero_only
    def save(self) -> None:
        """Rows are complete on disk except the one still being collected."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self.pending:
            self._write_pending()
        self._close()

    def start(self) -> None:
        """Begin an empty file."""
        self.columns, self.rows, self.pending = list(FIRST), 0, {}
        self._replace([])

    # ------------------------------------------------------------------ resume

    def state(self) -> dict[str, Any]:
        """Where the file stands, as primitives."""
        return {"columns": list(self.columns), "rows": self.rows, "pending": dict(self.pending)}

    def restore(self, state: dict[str, Any]) -> None:
        """Cut the file back to ``state``; rows and columns that came later disappear."""
        kept: list[dict[str, str]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                reader = csv.DictReader(file)
                kept = [row for row, _ in zip(reader, range(state["rows"]), strict=False)]
        if len(kept) < state["rows"]:
            log.warning("%s has lost rows: %d of %d are left", self.path, len(kept), state["rows"])
        self.columns, self.rows = list(state["columns"]), len(kept)
        self.pending = dict(state["pending"])
        self._replace([[row.get(c, "") for c in self.columns] for row in kept])

    # ------------------------------------------------------------------ writing

    def _write_pending(self) -> None:
        new = [name for name in self.pending if name not in self.columns]
        if new:
            old = []
            if self.path.exists():
                with self.path.open(newline="") as file:
                    old = list(csv.reader(file))[1:]
            self.columns += new
            self._replace([row + [""] * len(new) for row in old])
        row = [_cell(self.pending[c]) if c in self.pending else "" for c in self.columns]
        if self._file is None:
            self._file = self.path.open("a", newline="")
        self._file.write(_line(row))
        self._file.flush()
        self.rows += 1
        self.pending = {}

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _replace(self, rows: list[list[str]]) -> None:
        self._close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".csv.part")
        text = _line(self.columns) + "".join(_line(row) for row in rows)
        temporary.write_text(text)
        os.replace(temporary, self.path)


def _cell(value: float) -> str:
    number = float(value)
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def _line(cells: list[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()
