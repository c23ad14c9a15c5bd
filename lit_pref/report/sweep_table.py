"""``table.csv`` and ``table.md`` of a sweep, and the writing of all its files."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from lit_pref.report.statistics import Estimate
from lit_pref.report.sweep import IDENTITY, SweepRecord, read_sweep
from lit_pref.report.table import duration, number
from lit_pref.types import Refusal

__all__ = ["MEASURES", "as_csv", "as_markdown", "as_text", "measures", "shown", "write_sweep"]

_COUNTS = ("steps", "rounds", "samples", "reward_queries", "eval_queries")
_VALUES = ("reward_start", "reward_final", "kl_final", "accuracy_final", "wall_seconds")

MEASURES = (
    ("reward_final", "final reward"),
    ("kl_final", "final KL"),
    ("samples", "samples"),
    ("reward_queries", "reward queries"),
    ("wall_seconds", "wall time"),
)
"""What the comparison shows of each setting: key of ``summary.json``, and heading."""


_ACCURACY = (("accuracy_final", "final accuracy"), *MEASURES[4:])
"""Of reward models, which neither sample nor query a reward."""


def measures(sweep: SweepRecord) -> tuple[tuple[str, str], ...]:
    """What the comparison of this sweep shows, the number that decides first."""
    summaries = [c.summary for c in sweep.cells if c.status == "finished"]
    if any(s.get("reward_final") is not None for s in summaries):
        return MEASURES
    accurate = any(s.get("accuracy_final") is not None for s in summaries)
    return _ACCURACY if accurate else MEASURES


def write_sweep(folder: str | Path) -> SweepRecord:
    """Write ``table.csv`` (a row per cell), ``table.md`` and ``report.html`` of a sweep.

    Args:
        folder: the sweep directory.

    Returns:
        What was read.

    Raises:
        Refusal: ``folder`` is not a sweep directory, or cannot be written.
    """
    from lit_pref.report.sweep_page import render_sweep

    sweep = read_sweep(folder)
    texts = {"table.csv": as_csv(sweep), "table.md": as_markdown(sweep)}
    texts["report.html"] = render_sweep(sweep)
    for name, text in texts.items():
        target = sweep.path / name
        part = target.with_name(f".{name}.{os.getpid()}")
        try:
            part.write_bytes(text.encode("utf-8", errors="replace"))
            part.replace(target)
        except OSError as error:
            raise Refusal(
                f"expected to write {str(target)!r}, got {error.strerror!r}. "
                "Make the sweep directory writable, or copy it to a place that is."
            ) from error
    return sweep


def as_csv(sweep: SweepRecord) -> str:
    """One row per cell, refused ones included, all digits."""
    others = [k for k in sweep.varying if k not in IDENTITY]
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    measured = (*_COUNTS, *_VALUES)
    rows.writerow(["cell", "folder", *IDENTITY, *others, "status", *measured, "reason"])
    for cell in sweep.cells:
        identity = [cell.summary.get(k, cell.overrides.get(k, "")) for k in IDENTITY]
        given = [cell.overrides.get(k, "") for k in others]
        values = [cell.summary.get(k) for k in measured]
        rows.writerow(
            [cell.number, cell.folder, *identity, *given, cell.status]
            + ["" if v is None else v for v in values]
            + [cell.reason]
        )
    return out.getvalue()


def as_markdown(sweep: SweepRecord) -> str:
    """The comparison over seeds for people."""
    lines = [
        f"{sum(sweep.counts().values())} cells: "
        + ", ".join(f"{n} {status}" for status, n in sweep.counts().items()),
        "",
        "Mean over the seeds that finished, +- half the 95 % confidence interval of the mean.",
        "",
    ]
    asked = measures(sweep)
    heads = [*sweep.columns, "seeds", *(name for _, name in asked), "note"]
    lines += [_row(heads), _row(["---"] * len(heads))]
    for setting in sweep.settings():
        values = [shown(key, setting.measure(key)) for key, _ in asked]
        seeds = f"{setting.finished} of {len(setting.cells)}"
        lines.append(_row([*setting.values, seeds, *values, "; ".join(setting.notes())]))
    return "\n".join(lines) + "\n"


def as_text(sweep: SweepRecord, *, most: int = 40) -> str:
    """The comparison over seeds for a terminal: the settings that finished, aligned.

    Args:
        sweep: the sweep.
        most: settings shown; of more the last line says how many are left out.
    """
    asked = measures(sweep)[:2]
    known = [s for s in sweep.settings() if s.finished]
    rows = [[*sweep.columns, "seeds", *(name for _, name in asked)]]
    rows += [
        [*s.values, f"{s.finished} of {len(s.cells)}", *(shown(k, s.measure(k)) for k, _ in asked)]
        for s in known[:most]
    ]
    if len(rows) == 1:
        return ""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    if len(known) > most:
        lines.append(f"... and {len(known) - most} more in table.md")
    if any(s.measure(asked[0][0]).half is not None for s in known):
        lines.append("mean over seeds +- half the 95 % confidence interval")
    return "\n".join(lines) + "\n"


def shown(key: str, value: Estimate) -> str:
    """An estimate for people; the interval only where it says something."""
    if value.mean is None:
        return "-"
    if key == "wall_seconds":
        return duration(value.mean)
    mean = int(value.mean) if value.mean.is_integer() and key in _COUNTS else value.mean
    if value.half is None or (value.half == 0 and key in _COUNTS):
        return number(mean)
    return f"{number(mean)} +- {number(value.half, digits=3)}"


def _row(cells: list[str]) -> str:
    clean = (" ".join(str(c).split()).replace("|", "\\|") for c in cells)
    return f"| {' | '.join(clean)} |"
