"""``python train.py -m ...``: every cell of a grid, its table, and going on with it later.

Hydra's own sweeper composes all cells first and stops at the first that cannot be composed. Here
that cell is a row with its reason and the others run, through whichever Hydra launcher is chosen
(in this process, joblib, submitit). A sweeper that picks its cells itself (Optuna) runs as Hydra
runs it. How a cell ended is read from its ``summary.json``, so it may run in any process.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from lit_pref.app.cells import Grid, NotOurs, plan_cells
from lit_pref.app.preflight import config_dir
from lit_pref.app.prepare import plan
from lit_pref.errors import Refusal

__all__ = ["NoteFolder", "run_cell", "run_sweep"]

log = logging.getLogger(__name__)

_folder: list[Path] = []
"""The sweep directory of the sweep that runs, once it is known."""


class Stopped(BaseException):
    """A signal reached a cell: the sweep ends, and the cell has saved."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class NoteFolder(Callback):
    """Tells ``run_sweep`` where a sweep of another sweeper is."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _folder[:] = [Path(config.hydra.sweep.dir).absolute()]


def run_sweep(arguments: Sequence[str]) -> int:
    """Run all cells and write ``table.csv``, ``table.md`` and ``report.html``.

    Args:
        arguments: the command line without the program's name.

    Returns:
        0 if every cell finished or was refused, 1 if one failed, 128 + signal if stopped.

    Raises:
        Refusal: the sweep as a whole cannot work.
    """
    _folder.clear()
    for argument in arguments:
        if argument.lstrip("+").startswith("trainer.precision=") and "auto" in argument:
            raise Refusal(
                "a sweep compares runs of one precision, and trainer.precision=auto may find "
                "another for some of them; give 32-true or bf16-mixed (lit-pref bench "
                "trainer.precision=auto says which is faster here)"
            )
    stopped = code = 0
    try:
        _launch(list(arguments))
    except Stopped as stop:
        stopped = stop.exit_code
    except KeyboardInterrupt:
        stopped = 128 + signal.SIGINT
    except SystemExit as end:  # Hydra has said why
        code = int(end.code or 0)
    except Refusal:
        raise
    except Exception as error:  # a launcher's; what its cells left is still in the table
        log.debug("the launcher failed", exc_info=True)
        print(f"Failed: the launcher: {type(error).__name__}: {error}", file=sys.stderr)
        code = 1
    if not _folder:
        return stopped or code
    code = max(code, _close(_folder[0]))
    if stopped:
        print(
            "Interrupted. Go on with the same command and sweep.resume=true "
            f"hydra.sweep.dir={_folder[0]}",
            file=sys.stderr,
        )
    return stopped or code


def _launch(arguments: list[str]) -> None:
    try:
        grid = plan_cells(arguments)
    except NotOurs:
        _launch_by_hydra(arguments)
        return
    _folder[:] = [grid.folder]
    grid.launch(run_cell)


def _launch_by_hydra(arguments: list[str]) -> None:
    if any(a.lstrip("+").startswith("sweep.resume=") for a in arguments):
        raise Refusal(
            "sweep.resume continues a grid; this sweep's sweeper picks its cells itself. With "
            "Optuna give the study a name and a place: hydra.sweeper.study_name=NAME "
            "hydra.sweeper.storage=sqlite:///FILE"
        )
    note = "+hydra.callbacks.lit_pref_folder._target_=lit_pref.app.sweep.NoteFolder"
    GlobalHydra.instance().clear()
    before = sys.argv
    sys.argv = [before[0], *arguments, note]
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")(
            run_cell
        )()
    finally:
        sys.argv = before


def run_cell(cfg: DictConfig) -> float | None:
    """One cell, in whatever process the launcher chose; returns the monitored metric.

    Raises:
        Stopped: it was interrupted, so the sweep should be too.
    """
    from lit_pref.app.run import run_job

    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    given = [o for o in settings.overrides.task if not o.startswith("hydra.")]
    log.info("cell %s: %s", folder.name, " ".join(given) or "no overrides")
    again = Grid.continues(Path(settings.sweep.dir).absolute(), folder)
    if again:
        plan(cfg)  # as the cell's configuration was saved: with the runs prepared for it
        _check_agreement(cfg, folder)
    outcome = run_job(cfg, folder, resume=again)
    if outcome.status == "interrupted":
        raise Stopped(outcome.exit_code)
    return outcome.metric


def _check_agreement(cfg: DictConfig, folder: Path) -> None:
    """A cell goes on in place only as what it was."""
    saved = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=True)
    now = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(saved, dict) and isinstance(now, dict)
    differing = [k for k in now if k not in ("paths", "sweep") and now[k] != saved.get(k)]
    if differing:
        message = (
            f"{folder}: {', '.join(map(str, differing))} of the configuration changed since this "
            "cell began; remove its folder to run it anew"
        )
        print(f"Refused: {message}", file=sys.stderr)
        raise Refusal(message)


def _close(folder: Path) -> int:
    """Write the tables and say how the sweep went; returns its exit code."""
    from lit_pref.report import write_sweep
    from lit_pref.report.sweep_table import as_text

    if not folder.is_dir():
        return 1
    if not (folder / "sweep.json").exists():  # another sweeper's: mark it as a sweep
        (folder / "sweep.json").write_text(json.dumps({"cells": []}) + "\n")
    sweep = write_sweep(folder)
    counts = sweep.counts()
    relative = os.path.relpath(folder)
    print(
        f"{as_text(sweep)}"
        f"sweep: {', '.join(f'{n} {status}' for status, n in counts.items()) or 'no cells'}\n"
        f"table   {relative}/table.csv, {relative}/table.md\n"
        f"report  {relative}/report.html"
    )
    return int(any(status not in ("finished", "refused") for status in counts))
