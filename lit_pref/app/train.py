"""``python train.py``: from the command line to a run or a sweep. Imports no torch by itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from lit_pref.app.preflight import check_arguments, config_dir
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
        folder = _resume_folder(arguments)
        if folder is not None:
            from lit_pref.app.resume import resume_run

            sys.exit(resume_run(folder, arguments))
        check_arguments(arguments)
    except Refusal as refusal:
        print(f"Refused: {refusal}", file=sys.stderr)
        sys.exit(2)
    sys.exit(_run_hydra(arguments))


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
    if len(outcomes) == 1:
        return outcomes[0].exit_code
    return int(any(o.status not in ("finished", "refused") for o in outcomes))
