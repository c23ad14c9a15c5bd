"""One run from its configuration: files, training, summary, export, report."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig, OmegaConf

from lit_pref.app.build import Parts, build, trainer_of
from lit_pref.callbacks import Checkpoints, Evaluation, WholeFileIO, newest_checkpoint
from lit_pref.callbacks.signals import Interrupted, StopSignals
from lit_pref.report import final_table, write_report
from lit_pref.types import Refusal

__all__ = ["Outcome", "run_job"]

log = logging.getLogger(__name__)

_PACKAGES = ("lit-pref", "torch", "lightning", "transformers", "hydra-core", "omegaconf")


class Outcome:
    """How a run ended.

    Attributes:
        status: ``finished``, ``interrupted``, ``failed`` or ``refused``.
        exit_code: 0 only when the run did what was asked.
        metric: the monitored metric at the end, for sweepers.
        reason: one sentence, for anything but ``finished``.
    """

    def __init__(
        self, status: str, exit_code: int, metric: float | None = None, reason: str = ""
    ) -> None:
        self.status, self.exit_code, self.metric, self.reason = status, exit_code, metric, reason


def run_job(cfg: DictConfig, folder: Path, *, resume: bool = False) -> Outcome:
    """Train; whatever happens, ``summary.json`` says how it ended.

    Args:
        cfg: the composed configuration.
        folder: the run directory.
        resume: go on from the checkpoints in ``folder``.
    """
    started = time.monotonic()
    summary = _Summary(cfg, folder, started)
    try:
        if not resume:
            _write_config(cfg, folder)
        metric = _train(cfg, folder, summary, resume=resume)
    except Refusal as refusal:
        print(f"Refused: {refusal}", file=sys.stderr)
        summary.write("refused", reason=str(refusal))
        return Outcome("refused", 2, reason=str(refusal))
    except (Interrupted, KeyboardInterrupt) as stop:
        signum = getattr(stop, "signum", 2)
        summary.write("interrupted", reason=str(stop) or "Ctrl-C")
        print(f"Interrupted. Go on with: python train.py resume={folder}", file=sys.stderr)
        return Outcome("interrupted", 128 + signum, reason=str(stop))
    except Exception as error:
        log.error("%s", traceback.format_exc())
        summary.write("failed", reason=f"{type(error).__name__}: {error}")
        print(
            f"Failed: {type(error).__name__}: {error}\n"
            f"Samples, metrics and the last checkpoint are in {folder}",
            file=sys.stderr,
        )
        return Outcome("failed", 1, reason=f"{type(error).__name__}: {error}")
    return Outcome("finished", 0, metric)


def _train(cfg: DictConfig, folder: Path, summary: _Summary, *, resume: bool) -> float | None:
    for name in ("lightning.pytorch", "lightning.fabric"):  # their notes are about other loops
        logging.getLogger(name).setLevel(logging.WARNING)
    L.seed_everything(cfg.seed, workers=False, verbose=False)
    parts = build(cfg)
    checkpoints = Checkpoints(folder / "checkpoints", **cfg.checkpoint)
    trainer = trainer_of(
        cfg,
        parts,
        str(folder),
        callbacks=[StopSignals(checkpoints), checkpoints],
        plugins=[WholeFileIO()],
    )
    summary.attach(trainer, parts)
    checkpoint = newest_checkpoint(folder / "checkpoints") if resume else None
    if resume:
        what = "from the start: there is no checkpoint" if checkpoint is None else str(checkpoint)
        log.info("resuming %s", what)
    trainer.fit(parts.objective, datamodule=parts.data, ckpt_path=checkpoint)
    if trainer.is_global_zero:
        if cfg.export:
            parts.policy.save_pretrained(str(folder / "export"))
        summary.write("finished")
        write_report(folder)
        summary.show()
    value = trainer.callback_metrics.get(cfg.checkpoint.monitor or "val/reward")
    return None if value is None else float(value)


class _Summary:
    """``summary.json``: written at every ending, with whatever is known by then."""

    def __init__(self, cfg: DictConfig, folder: Path, started: float) -> None:
        self.cfg, self.folder, self.started = cfg, folder, started
        self.trainer: L.Trainer | None = None
        self.parts: Parts | None = None
        self.before = 0.0
        old = folder / "summary.json"
        if old.exists():
            self.before = json.loads(old.read_text()).get("wall_seconds") or 0.0
        self.values: dict[str, Any] = {}

    def attach(self, trainer: L.Trainer, parts: Parts) -> None:
        self.trainer, self.parts = trainer, parts

    def write(self, status: str, *, reason: str = "") -> None:
        if self.trainer is not None and not self.trainer.is_global_zero:
            return
        cfg = self.cfg
        values: dict[str, Any] = {
            "objective": cfg.objective.name,
            "data": cfg.data.name,
            "task": cfg.task.name,
            "model": cfg.model.name,
            "seed": cfg.seed,
            **self._progress(),
            "wall_seconds": round(self.before + time.monotonic() - self.started, 3),
            "status": status,
        }
        if reason:
            values["reason"] = reason
        self.values = values
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / "summary.json.part"
        temporary.write_text(json.dumps(values, indent=2) + "\n")
        os.replace(temporary, self.folder / "summary.json")
        if status in ("failed", "interrupted") and self.trainer is not None:
            write_report(self.folder)

    def _progress(self) -> dict[str, Any]:
        names = ("reward_start", "reward_final", "kl_final", "entropy_final", "length_final")
        out: dict[str, Any] = dict.fromkeys(
            ("steps", "rounds", "passes", "samples", "reward_queries", "eval_queries"), 0
        )
        out.update(dict.fromkeys(names))
        if self.trainer is None or self.parts is None:
            return out
        data = self.parts.data
        steps = self.trainer.global_step
        passes = -(-steps // data.batches_per_pass)
        out.update(data.counters, steps=steps, passes=passes, rounds=-(-passes // data.reuse))
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Evaluation):
                first, last = callback.first, callback.last
                out["reward_start"] = first.get("val/reward")
                out["reward_final"] = last.get("val/reward")
                out["kl_final"] = last.get("val/kl")
                out["length_start"] = first.get("val/mean_length")
                out["length_final"] = last.get("val/mean_length")
                out["entropy_final"] = last.get("val/entropy")
        return out

    def show(self) -> None:
        print(final_table(self.values, run_dir=self.folder))


def _write_config(cfg: DictConfig, folder: Path) -> None:
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
