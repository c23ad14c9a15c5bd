"""One run from its configuration: files, training, summary, export, report."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf

from lit_pref.app.build import build, trainer_of
from lit_pref.app.isolation import isolated
from lit_pref.app.launch import LaunchedProcess, process_count, run_processes
from lit_pref.app.memory_plan import check_memory
from lit_pref.app.outcome import Outcome
from lit_pref.app.precision import settle_precision
from lit_pref.app.prepare import PreparationFailed, plan, prepare
from lit_pref.app.processes import is_main, started_by
from lit_pref.app.record import Summary, correct_summary, write_config
from lit_pref.callbacks import Checkpoints, Evaluation, WholeFileIO, newest_checkpoint
from lit_pref.callbacks.signals import Interrupted, StopSignals, ignore_signals, terminable
from lit_pref.engine.allocator import keep_freed_memory
from lit_pref.policies.sharding import is_sharded
from lit_pref.report import write_report
from lit_pref.types import Refusal

__all__ = ["Outcome", "run_job"]

log = logging.getLogger(__name__)


def run_job(cfg: DictConfig, folder: Path, *, resume: bool = False) -> Outcome:
    """Train, here or in processes of its own; ``summary.json`` says how it ended.

    Args:
        cfg: the composed configuration.
        folder: the run directory.
        resume: go on from the checkpoints in ``folder``.
    """
    with isolated():
        outcome = _prepared(cfg, folder, resume=resume)
        count = process_count(cfg)
        if outcome.status != "finished":
            pass
        elif count > 1:
            began = time.time()
            outcome = run_processes(cfg, folder, count, resume=resume)
            correct_summary(cfg, folder, outcome, began)
        else:
            outcome = _ended(
                partial(_train, cfg, folder, resume=resume), cfg, folder, resume=resume
            )
    if is_main() and started_by() != "lit_pref":  # for those, run_processes' caller speaks
        _say(outcome, folder)
    return outcome


def _prepared(cfg: DictConfig, folder: Path, *, resume: bool) -> Outcome:
    """Put into the configuration what it leaves open: precision, folders of prepared runs.

    The runs that the task needs are made.
    """
    prepares = OmegaConf.select(cfg, "task.prepare") is not None or cfg.reward.name == "prepared"
    if not prepares and str(cfg.trainer.precision) != "auto":
        return Outcome("finished", 0)

    def work(summary: Summary) -> None:
        before = OmegaConf.to_yaml(cfg)
        settle_precision(cfg)
        missing = plan(cfg) if prepares else []
        if is_main() and OmegaConf.to_yaml(cfg) != before:  # a resumed run reads it there
            write_config(cfg, folder)
        prepare(missing)

    return _ended(work, cfg, folder, resume=resume)


def _ended(
    work: Callable[[Summary], float | None], cfg: DictConfig, folder: Path, *, resume: bool
) -> Outcome:
    """How a piece of work ended; anything but the good end is written into the summary."""
    summary = Summary(cfg, folder, time.monotonic())
    try:
        if not resume and is_main():
            write_config(cfg, folder)
        with terminable():
            metric = work(summary)
    except Refusal as refusal:
        outcome = Outcome("refused", 2, reason=str(refusal))
    except (Interrupted, KeyboardInterrupt) as stop:
        signum = getattr(stop, "signum", 2)
        outcome = Outcome("interrupted", 128 + signum, reason=str(stop) or "Ctrl-C")
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning's answer to it
            signum = getattr(end.__context__, "signum", 2)
            outcome = Outcome("interrupted", 128 + signum, reason="stopped at once")
        else:
            outcome = Outcome("failed", 1, reason=f"something called sys.exit({end.code!r})")
    except PreparationFailed as error:
        outcome = Outcome("failed", 1, reason=str(error))
    except Exception as error:
        log.error("%s", traceback.format_exc())
        outcome = Outcome("failed", 1, reason=f"{type(error).__name__}: {error}")
    else:
        return Outcome("finished", 0, metric)
    if outcome.status == "interrupted":
        ignore_signals()  # ``isolated`` puts their handlers back
    if not (resume and outcome.status == "refused"):  # what the run did remains true
        summary.write(outcome.status, reason=outcome.reason)
    return outcome


def _say(outcome: Outcome, folder: Path) -> None:
    """The last lines of a run that did not finish."""
    if outcome.status == "refused":
        print(f"Refused: {outcome.reason}", file=sys.stderr)
    elif outcome.status == "interrupted":
        print(f"Interrupted. Go on with: {_again(folder)}", file=sys.stderr)
    elif outcome.status == "failed":
        print(f"Failed: {outcome.reason}\n{_left_behind(folder)}", file=sys.stderr)


def _left_behind(folder: Path) -> str:
    """What a run that failed can still be asked, and whether it can go on."""
    names = {
        "samples": "samples.jsonl",
        "the round that failed": "failed_round.jsonl",
        "metrics": "metrics.csv",
    }
    files = {what: folder / name for what, name in names.items()}
    there = [what for what, file in files.items() if file.exists() and file.stat().st_size]
    text = f"In {folder}: {', '.join(there)}." if there else f"Nothing was kept in {folder}."
    if not any((folder / "checkpoints").glob("*.ckpt")):
        return f"{text} There is no checkpoint: it failed before the end of the first round."
    return f"{text} Go on from its last checkpoint with: {_again(folder)}"


def _again(folder: Path) -> str:
    """The command that goes on, as this one was given."""
    command = "python train.py" if Path(sys.argv[0]).name == "train.py" else "lit-pref train"
    return f"{command} resume={folder}"


def _train(cfg: DictConfig, folder: Path, summary: Summary, *, resume: bool) -> float | None:
    if str(cfg.trainer.accelerator) == "cpu" or not torch.cuda.is_available():
        keep_freed_memory()
    if not isinstance(cfg.seed, int) or isinstance(cfg.seed, bool) or not 0 <= cfg.seed < 2**32:
        raise Refusal(f"seed must be a whole number from 0 to 4294967295, got {cfg.seed!r}")
    L.seed_everything(cfg.seed, workers=False, verbose=False)
    parts = build(cfg)
    check_memory(cfg, parts)
    checkpoints = Checkpoints(folder / "checkpoints", **cfg.checkpoint)
    trainer = trainer_of(
        cfg,
        parts,
        str(folder),
        callbacks=[StopSignals(checkpoints), checkpoints],
        plugins=[WholeFileIO(), *([LaunchedProcess()] if LaunchedProcess.detect() else [])],
    )
    summary.attach(trainer, parts)
    checkpoint = newest_checkpoint(folder / "checkpoints") if resume else None
    if resume:
        what = "from the start: there is no checkpoint" if checkpoint is None else str(checkpoint)
        log.info("resuming %s", what)
        checkpoints.resume_from(checkpoint)
    elif trainer.is_global_zero:
        if summary.found.get("steps"):
            log.warning(
                "%s held another run (%s, %s steps), which this one replaces; its folder is "
                "hydra.run.dir",
                *(folder, summary.found.get("status"), summary.found.get("steps")),
            )
        checkpoints.clear()
    trainer.fit(parts.objective, datamodule=parts.data, ckpt_path=checkpoint)
    if cfg.export and (trainer.is_global_zero or is_sharded(parts.policy)):
        parts.objective.export(str(folder / "export"))
    if trainer.is_global_zero:
        summary.write("finished")
        write_report(folder)
        summary.show()
    name = cfg.checkpoint.monitor or "val/reward"
    # A resumed run that had nothing left to do measured nothing anew.
    evaluations = [c for c in trainer.callbacks if isinstance(c, Evaluation)]  # type: ignore[attr-defined]
    before = evaluations[0].last.get(name) if evaluations else None
    value = trainer.callback_metrics.get(name, before)
    return None if value is None else float(value)
