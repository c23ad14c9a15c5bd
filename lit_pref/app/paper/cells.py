"""Runs of a figure's grid: each cell once, kept, read back as curves."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from lit_pref.app.preflight import compose_config, composing
from lit_pref.errors import Refusal

__all__ = ["Cell", "Curves", "Run", "cells_of", "run_cells", "settings_digest"]

log = logging.getLogger(__name__)

CELL_VERSION = 1
"""Raised with any change that makes earlier results of the same configuration wrong."""


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        labels: its place in the grid, axis -> name.
        overrides: what it is composed of.
        seed: of the run.
    """

    labels: tuple[tuple[str, str], ...]
    overrides: tuple[str, ...]
    seed: int


@dataclass
class Run:
    """A finished cell.

    Attributes:
        cell: what was run.
        columns: metric -> values at the measured steps; ``step``, ``samples`` and
            ``reward_queries`` among them.
        counters: totals at the end (steps, samples, reward queries).
        seconds: wall-clock time.
    """

    cell: Cell
    columns: dict[str, list[float]]
    counters: dict[str, float]
    seconds: float


@dataclass
class Curves:
    """All runs of a figure, asked for by label."""

    runs: list[Run] = field(default_factory=list)

    def where(self, **labels: str) -> list[Run]:
        """Runs with these labels, by seed."""
        found = [r for r in self.runs if labels.items() <= dict(r.cell.labels).items()]
        return sorted(found, key=lambda r: r.cell.seed)

    def at(self, metric: str, step: int | None = None, **labels: str) -> list[float]:
        """One number per seed: the metric at a step (None: at the end)."""
        out = []
        for run in self.where(**labels):
            steps = run.columns["step"]
            wanted = steps[-1] if step is None else step
            out.append(run.columns[metric][steps.index(wanted)])
        if not out:
            raise KeyError(f"no run with {labels}")
        return out

    def first_step(self, metric: str, least: float, **labels: str) -> list[float]:
        """For each seed the first measured step with at least this value; inf for never."""
        out = []
        for run in self.where(**labels):
            points = zip(run.columns["step"], run.columns[metric], strict=True)
            out.append(next((s for s, v in points if v >= least), float("inf")))
        return out

    def labels(self, axis: str) -> list[str]:
        """Names of an axis, in the order of the grid."""
        return list(dict.fromkeys(dict(r.cell.labels)[axis] for r in self.runs))


def cells_of(grid: dict[str, Any], seeds: Sequence[int], extra: Sequence[str] = ()) -> list[Cell]:
    """Every combination of a grid's axes, for every seed.

    Args:
        grid: ``experiment`` and ``axes``: axis -> name -> list of overrides; ``skip`` lists
            combinations (axis -> name) that are left out.
        seeds: run seeds.
        extra: overrides of all cells, after the others.
    """
    axes = grid["axes"]
    out = []
    for names in itertools.product(*(axes[axis] for axis in axes)):
        labels = dict(zip(axes, map(str, names), strict=True))
        if any(all(labels[a] == str(n) for a, n in s.items()) for s in grid.get("skip", [])):
            continue
        overrides = [f"experiment={grid['experiment']}"]
        for axis, name in zip(axes, names, strict=True):
            overrides += axes[axis][name]
        for seed in seeds:
            out.append(Cell(tuple(labels.items()), (*overrides, *extra, f"seed={seed}"), seed))
    return out


def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    *,
    jobs: int = 1,
    tell: Callable[[str], None] = lambda line: None,
) -> Curves:
    """Run what is not finished and read everything.

    Args:
        cells: the grid.
        folder: keeps finished cells, each under a digest of its configuration.
        jobs: processes; 1 runs all in this one.
        tell: told a line per finished cell.
    """
    runs: list[Run] = []
    if jobs == 1:
        for n, cell in enumerate(cells, 1):
            runs.append(_run_cell(cell, folder))
            tell(_line(n, len(cells), runs[-1]))
        return Curves(runs)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for n, run in enumerate(pool.map(_run_cell, cells, itertools.repeat(folder)), 1):
            runs.append(run)
            tell(_line(n, len(cells), run))
    return Curves(runs)


def _line(number: int, total: int, run: Run) -> str:
    words = " ".join(f"{a}={n}" for a, n in run.cell.labels)
    reward = run.columns.get("curve/reward", [float("nan")])[-1]
    return f"{number}/{total}  {words} seed={run.cell.seed}  reward {reward:.3f}"


def _run_cell(cell: Cell, folder: Path) -> Run:
    with composing():
        cfg = compose_config([*cell.overrides, "paths.run_dir=."])
    place = folder / settings_digest(cfg)
    kept = place / "cell.json"
    if not kept.exists():
        if place.exists():  # interrupted: nothing of it is kept
            shutil.rmtree(place)
        _write(kept, _train(cfg, place))
    saved = json.loads(kept.read_text())
    return Run(cell, saved["columns"], saved["counters"], saved["seconds"])


def settings_digest(cfg: Any) -> str:
    """20 hex digits that name the settings of a cell, wherever its files and caches are."""
    from omegaconf import OmegaConf

    names = [str(k) for k in cfg if k != "hydra"]
    settings = OmegaConf.masked_copy(cfg, names)
    settings.paths = dict.fromkeys(settings.paths, "")
    values = OmegaConf.to_container(settings, resolve=True)
    text = json.dumps([CELL_VERSION, values], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _write(path: Path, values: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values) + "\n")
    part.replace(path)


def _train(cfg: Any, place: Path) -> dict[str, Any]:
    """The ordinary objects of a run and the ordinary loop, without checkpoints and reports."""
    import lightning as L

    from lit_pref.app.build import build, trainer_of
    from lit_pref.app.isolation import isolated
    from lit_pref.app.record import write_config

    began = time.monotonic()
    place.mkdir(parents=True)
    with isolated():
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="lightning")  # an offline pass is one batch
        torch.set_num_threads(1)  # faster for networks this small
        L.seed_everything(cfg.seed, workers=False, verbose=False)
        cfg.paths.run_dir = str(place)
        write_config(cfg, place)
        parts = build(cfg)
        trainer = trainer_of(cfg, parts, str(place), enable_checkpointing=False)
        trainer.fit(parts.objective, datamodule=parts.data)
        counters = {"steps": float(trainer.global_step), **parts.data.counters}
    columns = _columns(place / "metrics.csv")
    for name in ("samples.jsonl", "validation.jsonl"):  # 100 MB of a whole figure
        (place / name).unlink(missing_ok=True)
    seconds = time.monotonic() - began
    return {"columns": columns, "counters": counters, "seconds": round(seconds, 3)}


def _columns(path: Path) -> dict[str, list[float]]:
    """The rows of ``metrics.csv`` that hold a measurement."""
    from lit_pref.report import read_metrics

    table = read_metrics(path)
    reward = table.column("curve/reward")
    rows = [i for i, value in enumerate(reward) if value is not None]
    if not rows:
        raise Refusal(f"{path} has no column curve/reward; the cell needs callbacks=curve")
    names = ["step", "samples", "reward_queries"]
    names += [c for c in table.columns if c.startswith("curve/")]
    out = {}
    for name in names:
        values = table.column(name)
        out[name] = [float(values[i]) for i in rows]  # type: ignore[arg-type]
    return out
