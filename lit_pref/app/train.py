"""``python train.py``: from the command line to a run or a sweep. Imports no torch by itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from lit_pref.app.preflight import check_arguments, config_dir
from lit_pref.app.processes import is_main, started_by
from lit_pref.errors import Refusal

__all__ = ["main"]


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit; see ``python train.py --help``.

    Args:
        argv: arguments without the program's name; those of the process by default.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if os.getcwd() not in sys.path:  # dotted paths of the user's own modules, as with python -m
        sys.path.append(os.getcwd())
    try:
        sys.exit(_run(list(arguments)))
    except Refusal as refusal:
        if is_main():
            print(f"Refused: {refusal}", file=sys.stderr)
        sys.exit(2)


def _run(arguments: list[str]) -> int:
    folder = _resume_folder(arguments)
    if folder is not None:
        from lit_pref.app.resume import resume_run

        return resume_run(folder, arguments)
    check_arguments(arguments)
    multirun = bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(arguments))
    if started_by() != "itself":
        arguments = _among_others(arguments, multirun=multirun)
    if multirun:
        from lit_pref.app.sweep import run_sweep

        return run_sweep(arguments)
    return _run_hydra(arguments)


def _among_others(arguments: list[str], *, multirun: bool) -> list[str]:
    """The arguments where a launcher started this process and its peers with the same command."""
    if {"--help", "--hydra-help", "--cfg"} & set(arguments):
        return arguments
    if multirun:
        raise Refusal(
            f"a sweep cannot be started by {started_by()}: every process would run all of it. "
            "Leave the launcher out: each cell starts its own processes (strategy=ddp "
            "trainer.devices=2), or is submitted by hydra/launcher=submitit_slurm"
        )
    if not any(a.startswith("hydra.run.dir=") for a in arguments):
        raise Refusal(
            "several processes were started from outside, and the default run directory has the "
            "time in its name, which they may read differently; give one: hydra.run.dir=FOLDER"
        )
    if is_main():
        return arguments
    return [*arguments, "hydra.output_subdir=null", "hydra/job_logging=none"]


def _resume_folder(arguments: list[str]) -> Path | None:
    values = [a.split("=", 1)[1] for a in arguments if a.startswith("resume=")]
    return Path(values[-1]) if values and values[-1] not in ("", "null") else None


def _run_hydra(arguments: list[str]) -> int:
    outcomes: list[Any] = []

    def job(cfg: DictConfig) -> float | None:
        from hydra.core.hydra_config import HydraConfig

        from lit_pref.app.run import run_job

        outcome = run_job(cfg, Path(HydraConfig.get().runtime.output_dir))
        outcomes.append(outcome)
        return outcome.metric

    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")(job)()
    finally:
        sys.argv = before
    return max((outcome.exit_code for outcome in outcomes), default=0)
