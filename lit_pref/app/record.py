"""What a run writes about itself: ``config.yaml``, ``environment.json``, ``summary.json``."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig, OmegaConf

from lit_pref.app.build import Parts
from lit_pref.app.outcome import Outcome
from lit_pref.app.processes import is_main
from lit_pref.callbacks import Checkpoints, Evaluation
from lit_pref.report import final_table, read_metrics, write_report

__all__ = ["Summary", "correct_summary", "write_config", "write_whole"]

_PACKAGES = ("lit-pref", "torch", "lightning", "transformers", "hydra-core", "omegaconf")


class Summary:
    """``summary.json``: written at every ending, with whatever is known by then."""

    def __init__(self, cfg: DictConfig, folder: Path, started: float) -> None:
        self.cfg, self.folder, self.started = cfg, folder, started
        self.trainer: L.Trainer | None = None
        self.parts: Parts | None = None
        old = folder / "summary.json"
        self.found: dict[str, Any] = _summary_in(old) if old.exists() else {}
        """What an earlier run in this folder left."""
        self.old = self.found if cfg.get("resume") else {}
        self.values: dict[str, Any] = {}

    def attach(self, trainer: L.Trainer, parts: Parts) -> None:
        self.trainer, self.parts = trainer, parts

    def write(self, status: str, *, reason: str = "") -> None:
        if not is_main() or (self.trainer is not None and not self.trainer.is_global_zero):
            return
        cfg = self.cfg
        values: dict[str, Any] = {
            "objective": cfg.objective.name,
            "data": cfg.data.name,
            "task": cfg.task.name,
            "model": cfg.model.name,
            "seed": cfg.seed,
            **self._progress(),
            "wall_seconds": round(self._seconds_before() + time.monotonic() - self.started, 3),
            "status": status,
        }
        if reason:
            values["reason"] = reason
        self.values = values
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / "summary.json", json.dumps(values, indent=2) + "\n")
        if status in ("failed", "interrupted") and self.trainer is not None:
            write_report(self.folder)

    def _seconds_before(self) -> float:
        """Of earlier processes of this run: one that was killed left them in its checkpoint."""
        callbacks: list[Any] = [] if self.trainer is None else self.trainer.callbacks  # type: ignore[attr-defined]
        saved = [c.seconds for c in callbacks if isinstance(c, Checkpoints)]
        return max(self.old.get("wall_seconds") or 0.0, *saved, 0.0)

    def _progress(self) -> dict[str, Any]:
        names = ("reward_start", "reward_final", "kl_final", "entropy_final", "length_final")
        out: dict[str, Any] = dict.fromkeys(
            ("steps", "rounds", "passes", "samples", "reward_queries", "eval_queries"), 0
        )
        out.update(dict.fromkeys(names))
        if self.trainer is None or self.parts is None:
            return out | {name: self.old[name] for name in out if name in self.old}
        data = self.parts.data
        steps = self.trainer.global_step
        passes = -(-steps // data.batches_per_pass)
        out.update(data.counters, steps=steps, passes=passes, rounds=-(-passes // data.reuse))
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Evaluation):
                first, last = callback.first, callback.last
                if callback.last_step < steps and callback.last_step <= 0:
                    last = {}  # measured before training alone: a start and no end
                out["reward_start"] = first.get("val/reward")
                out["reward_final"] = last.get("val/reward")
                out["kl_final"] = last.get("val/kl")
                out["length_start"] = first.get("val/mean_length")
                out["length_final"] = last.get("val/mean_length")
                out["entropy_final"] = last.get("val/entropy")
                for name in ("reward", "kl"):  # where an instrument measures intervals
                    ends = [last.get(f"val/{name}_{end}") for end in ("low", "high")]
                    if None not in ends:
                        out[f"{name}_final_interval"] = ends
                if "val/accuracy" in last:  # reward models
                    out["accuracy_start"] = first.get("val/accuracy")
                    out["accuracy_final"] = last["val/accuracy"]
        return out

    def show(self) -> None:
        print(final_table(self.values, run_dir=self.folder))


def correct_summary(cfg: DictConfig, folder: Path, outcome: Outcome, began: float) -> None:
    """Put into ``summary.json`` what the process of rank 0 could not know of its peers.

    Args:
        cfg: the configuration of the run.
        folder: the run directory.
        outcome: how the run ended.
        began: ``time.time`` at its start.
    """
    if outcome.status == "refused" and cfg.get("resume"):
        return  # what the run did before remains true
    path = folder / "summary.json"
    values: dict[str, Any] = {}
    if path.exists() and path.stat().st_mtime >= began:
        values = json.loads(path.read_text())
    else:  # rank 0 had no time to write one
        summary = Summary(cfg, folder, time.monotonic() - (time.time() - began))
        summary.write(outcome.status, reason=outcome.reason)
        values = summary.values | _logged_counts(folder)
    ending = {"status": outcome.status} | ({"reason": outcome.reason} if outcome.reason else {})
    if values | ending != values or not values.get("steps"):
        write_whole(path, json.dumps(values | ending, indent=2) + "\n")
        write_report(folder)


def _logged_counts(folder: Path) -> dict[str, int]:
    """How far the run came, by the last rows of ``metrics.csv``."""
    table = read_metrics(folder / "metrics.csv")
    names = {"steps": "step", "samples": "samples", "reward_queries": "reward_queries"}
    logged = {
        name: [c for c in table.column(column) if isinstance(c, int)]
        for name, column in names.items()
    }
    return {name: max(values) for name, values in logged.items() if values}


def _summary_in(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except ValueError:  # damaged: it says nothing
        return {}
    return values if isinstance(values, dict) else {}


def write_whole(path: Path, text: str) -> None:
    """The file is there with all of ``text``, or as it was."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def write_config(cfg: DictConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    environment = {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git_commit": _git_commit(),
    }
    (folder / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    try:
        out = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()
