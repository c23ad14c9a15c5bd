"""``resume=DIR``: go on with a run in its own directory, on its own configuration."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from lit_pref.app.processes import is_main
from lit_pref.errors import Refusal

__all__ = ["log_to", "resume_run"]

log = logging.getLogger(__name__)

_MAY_DIFFER = ("data.rounds", "trainer.max_steps", "logger", "callbacks")
"""What a resumed run may change; everything else would make it another run."""


def resume_run(folder: Path, arguments: Sequence[str]) -> int:
    """Resume the run in ``folder``; returns the exit code.

    Raises:
        Refusal: not a run directory, or an override that contradicts its configuration.
    """
    saved = folder / "config.yaml"
    if not saved.exists():
        for run in list(folder.parents)[:2]:
            if (run / "config.yaml").exists() and (run / "checkpoints").is_dir():
                raise Refusal(f"resume={folder} is a part of a run; give the run: resume={run}")
        raise Refusal(
            f"resume={folder}: there is no config.yaml, so this is not a run directory; give the "
            "folder that a run printed at its end: runs/<date>/<time>_<objective>_<data>"
        )
    cfg = OmegaConf.load(saved)
    assert isinstance(cfg, DictConfig)
    for argument in arguments:
        if not argument.startswith("resume="):
            _apply(cfg, argument)
    cfg.resume = str(folder)
    cfg.paths.run_dir = str(folder)
    if is_main():
        log_to(folder)
    from lit_pref.app.run import run_job

    return run_job(cfg, folder, resume=True).exit_code


def _apply(cfg: DictConfig, argument: str) -> None:
    """One override: allowed to differ, or equal to what the run has."""
    key, sign, text = argument.lstrip("+").partition("=")
    if not sign or key.startswith("-"):
        raise Refusal(f"{argument!r} cannot be combined with resume; expected key=value")
    value = OmegaConf.create(f"value: {text}").value
    present = OmegaConf.select(cfg, key)
    if any(key == k or key.startswith(f"{k}.") for k in _MAY_DIFFER):
        OmegaConf.update(cfg, key, value, force_add=True)
        return
    if isinstance(present, DictConfig) and "name" in present:
        present = present.name
    if present != value:
        raise Refusal(
            f"{argument}: the run in {cfg.paths.run_dir} has {key}={json.dumps(str(present))}; "
            f"a resumed run may change only {', '.join(_MAY_DIFFER)}. Leave it out, or start a "
            "new run"
        )


def log_to(folder: Path) -> None:
    """Messages go to the console, and with time and origin to ``run.log``."""
    file = logging.FileHandler(folder / "run.log")
    file.setFormatter(logging.Formatter("[%(asctime)s][%(levelname)s][%(name)s] %(message)s"))
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[console, file], force=True)
