"""Runs of a figure's grid: each cell once, kept, read back as curves."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from lit_pref.app.paper.jobs import parallel
from lit_pref.app.preflight import compose_config, composing
from lit_pref.errors import Refusal

__all__ = ["Cell", "Curves", "Run", "cells_of", "run_cells", "settings_digest"]

log = logging.getLogger(__name__)

CELL_VERSION = 1
"""Raised with any change that makes earlier results of the same configuration wrong."""

WINDOWED = ("clip_ratio/region", "round/reward_accuracy")
"""Metrics of training steps and rounds that cells keep."""


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
            ``reward_queries`` among them, and ``seconds``: processor time of training, without
            that of measuring. NaN where a metric has no value at a step.
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
            combinations (axis -> name) that are left out, ``also`` combinations (``where``) that
            get further ``overrides``.
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
        for rule in grid.get("also", []):
            if all(labels[a] == str(n) for a, n in rule["where"].items()):
                overrides += rule["overrides"]
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

    Runs that the cells' tasks need (``task.prepare``) are made first, in this process.

    Args:
        cells: the grid.
        folder: keeps finished cells, each under a digest of its configuration.
        jobs: processes; 1 runs all in this one. Ctrl-C ends them all; finished cells are kept.
        tell: told a line per finished cell.
    """
    works = _works(cells, folder)
    runs: list[Run] = []
    for n, run in enumerate(parallel(_run_cell, works, jobs=jobs), 1):
        runs.append(run)
        tell(_line(n, len(cells), run))
    return Curves(runs)


def _line(number: int, total: int, run: Run) -> str:
    words = " ".join(f"{a}={n}" for a, n in run.cell.labels)
    reward = run.columns.get("curve/reward", [float("nan")])[-1]
    return f"{number}/{total}  {words} seed={run.cell.seed}  reward {reward:.3f}"


@dataclass(frozen=True)
class _Work:
    """A cell, its place, and the keys that its prepared runs give."""

    cell: Cell
    place: Path
    given: dict[str, str]


def _works(cells: Sequence[Cell], folder: Path) -> list[_Work]:
    from omegaconf import OmegaConf

    works: list[_Work] = []
    prepared: dict[str, dict[str, str]] = {}
    for cell in cells:
        cfg = _composed(cell)
        place, given = folder / settings_digest(cfg), {}
        if OmegaConf.select(cfg, "task.prepare") and not (place / "cell.json").exists():
            parts = [cfg.task, cfg.model, cfg.reward]
            same = json.dumps([OmegaConf.to_container(p, resolve=True) for p in parts], default=str)
            if same not in prepared:
                prepared[same] = _prepare(cfg)
            given = prepared[same]
        works.append(_Work(cell, place, given))
    return works


def _composed(cell: Cell) -> Any:
    with composing():
        return compose_config([*cell.overrides, "paths.run_dir=."])


def _prepare(cfg: Any) -> dict[str, str]:
    """Make the runs that a configuration needs; the keys that they give."""
    from omegaconf import OmegaConf

    from lit_pref.app.prepare import plan, prepare

    prepare(plan(cfg))
    keys = [node.gives for node in cfg.task.prepare.values()]
    return {k: v for k in keys if (v := OmegaConf.select(cfg, k)) is not None}


def _run_cell(work: _Work) -> Run:
    from omegaconf import OmegaConf

    kept = work.place / "cell.json"
    if not kept.exists():
        work.place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(work.place.with_suffix(".lock")):  # another call may be at the same cell
            if not kept.exists():
                if work.place.exists():  # interrupted: nothing of it is kept
                    shutil.rmtree(work.place)
                cfg = _composed(work.cell)
                for key, value in work.given.items():
                    OmegaConf.update(cfg, key, value)
                _write(kept, _train(cfg, work.place))
    saved = json.loads(kept.read_text())
    return Run(work.cell, saved["columns"], saved["counters"], saved["seconds"])


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
    from lit_pref.app.paper.clock import Clock
    from lit_pref.app.record import write_config

    clock = Clock()
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
        clock.watch(trainer)
        trainer.fit(parts.objective, datamodule=parts.data)
        counters = {"steps": float(trainer.global_step), **parts.data.counters}
    columns = _columns(place / "metrics.csv")
    columns["seconds"] = [round(clock.at[int(step)], 3) for step in columns["step"]]
    for name in ("samples.jsonl", "validation.jsonl"):  # 100 MB of a whole figure
        (place / name).unlink(missing_ok=True)
    return {"columns": columns, "counters": counters, "seconds": clock.since_made()}


def _columns(path: Path) -> dict[str, list[float]]:
    """The rows of ``metrics.csv`` that hold a measurement.

    They are those of ``callbacks.curve``, or else those of ``callbacks.evaluation``, under the
    same names. What training steps log is averaged from one measurement to the next.
    """
    from lit_pref.report import read_metrics

    table = read_metrics(path)
    prefix = "curve/" if "curve/reward" in table.columns else "val/"
    reward = table.column(f"{prefix}reward")
    rows = [i for i, value in enumerate(reward) if value is not None]
    if not rows:
        raise Refusal(
            f"{path} has neither curve/reward nor val/reward; the cell needs callbacks=curve"
        )
    names = ["step", "samples", "reward_queries"]
    names += [c for c in table.columns if c.startswith((prefix, "probe/"))]
    out = {}
    for name in names:
        values = table.column(name)
        place = name.replace(prefix, "curve/", 1) if name.startswith(prefix) else name
        out[place] = [_number(values[i]) for i in rows]
    for name in table.present(WINDOWED):
        values = table.column(name)
        parts = [values[a + 1 : b + 1] for a, b in itertools.pairwise([-1, *rows])]
        out[name] = [_mean([_number(v) for v in part if v is not None]) for part in parts]
    return out


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
