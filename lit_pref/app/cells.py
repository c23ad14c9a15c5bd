"""The cells of a grid: which there are, which are to be run, and where each one lives."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lit_pref.app.preflight import config_dir, split
from lit_pref.errors import Refusal

__all__ = ["Grid", "NotOurs", "plan_cells"]

_FLAGS = {"-m", "--multirun", "--config-dir", "-cd"}


class NotOurs(Exception):
    """The sweep has its own sweeper or primary configuration: Hydra runs it."""


@dataclass
class Grid:
    """A planned sweep.

    Attributes:
        folder: the sweep directory, absolute.
        cells: ``{"number", "folder", "overrides", "refused"}`` of each, as in ``sweep.json``.
        master: Hydra's configuration of the sweep.
        loader: Hydra's configuration loader.
    """

    folder: Path
    master: DictConfig
    loader: Any
    cells: list[dict[str, Any]] = field(default_factory=list)

    def launch(self, job: Callable[[DictConfig], Any]) -> None:
        """Run what is not finished, by the launcher of the configuration."""
        todo = [c for c in self.cells if not c["refused"] and self.status(c) != "finished"]
        refused = [c for c in self.cells if c["refused"]]
        done = len(self.cells) - len(todo) - len(refused)
        print(f"sweep of {len(self.cells)} cells in {os.path.relpath(self.folder)}")
        if done:
            print(f"{done} of them are finished already")
        shared = set.intersection(*(set(c["overrides"]) for c in self.cells))
        for cell in refused:
            words = " ".join(o for o in cell["overrides"] if o not in shared)
            print(f"Refused: cell {cell['number']} ({words}): {cell['refused']}")
        if not todo:
            return
        logging.getLogger("hydra").setLevel(logging.WARNING)  # run_cell names each cell
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(config_loader=self.loader, callbacks=Callbacks(self.master)),
            task_function=job,
            config=self.master,
        )
        place = _quoted("hydra.sweep.dir", str(self.folder))
        jobs = [[*c["overrides"], place, _quoted("hydra.sweep.subdir", c["folder"])] for c in todo]
        size = self.master.hydra.sweeper.max_batch_size or len(jobs)
        for start in range(0, len(jobs), size):
            launcher.launch(jobs[start : start + size], initial_job_idx=start)

    def status(self, cell: dict[str, Any]) -> str | None:
        """How a cell ended, None if nothing is known."""
        return _status(self.folder / cell["folder"])

    def write(self) -> None:
        """``sweep.json``: the cells that were asked for."""
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / "sweep.json.part"
        part.write_text(json.dumps({"cells": self.cells}, indent=1) + "\n")
        part.replace(self.folder / "sweep.json")

    @staticmethod
    def continues(sweep: Path, folder: Path) -> bool:
        """Whether a cell of a grid began in an earlier sitting and goes on in place."""
        if not (sweep / "sweep.json").exists() or not (folder / "config.yaml").exists():
            return False
        folders = {c["folder"] for c in json.loads((sweep / "sweep.json").read_text())["cells"]}
        return os.path.relpath(folder, sweep) in folders and _status(folder) != "refused"


def plan_cells(arguments: Sequence[str]) -> Grid:
    """The grid of a command line; ``sweep.json`` is written.

    Raises:
        NotOurs: another sweeper or primary configuration was asked for.
        Refusal: the directory holds another sweep, or the overrides are no grid.
    """
    overrides, flags, searched = split(arguments)
    if flags - _FLAGS or (searched and any("hydra.searchpath" in o for o in overrides)):
        raise NotOurs
    extra = [f"hydra.searchpath=[{','.join(f'file://{s}' for s in searched)}]"] if searched else []
    GlobalHydra.instance().clear()
    initialize_config_dir(str(config_dir()), job_name="train", version_base="1.3")
    app = GlobalHydra.instance().hydra
    assert app is not None
    master = _master(app, [*overrides, *extra])
    if not master.hydra.sweeper.get("_target_", "").endswith("BasicSweeper"):
        raise NotOurs
    again = bool(master.sweep.resume)
    folder = Path(master.hydra.sweep.dir).absolute()
    with open_dict(master):
        master.hydra.sweep.dir = str(folder)
    grid = Grid(folder=folder, master=master, loader=app.config_loader)
    before = _earlier(folder, again=again)
    grid.cells = list(before.values())
    for given in _counted(_combinations(master, app.config_loader)):
        known = before.get(given)
        if known is None:
            grid.cells.append(_compose(grid, len(grid.cells), list(given[0])))
        elif known["refused"]:  # perhaps no longer
            known.update(_compose(grid, known["number"], list(given[0])))
    grid.write()
    return grid


def _master(app: Any, overrides: list[str]) -> DictConfig:
    """Hydra's configuration of the sweep as a whole.

    Hydra applies what is not swept to the default options; where that cannot be (a key that only a
    swept option has), its own settings are enough: each cell is composed with everything.
    """
    own = [o for o in overrides if o.lstrip("+~").startswith(("hydra", "sweep."))]
    rest = [o for o in overrides if o not in own]
    try:
        return app.compose_config("train", overrides, run_mode=RunMode.MULTIRUN)
    except (HydraException, OmegaConfBaseException):
        pass
    try:
        master = app.compose_config("train", own, run_mode=RunMode.MULTIRUN)
    except (HydraException, OmegaConfBaseException) as error:
        raise Refusal(f"the sweep cannot be composed: {_one_line(error)}") from error
    with open_dict(master):
        master.hydra.overrides.task = rest
    return master


def _counted(cells: Iterable[Sequence[str]]) -> list[tuple[tuple[str, ...], int]]:
    """Overrides of each cell and how often the same came before: what a cell is known by."""
    seen: Counter[tuple[str, ...]] = Counter()
    out = []
    for cell in map(tuple, cells):
        out.append((cell, seen[cell]))
        seen[cell] += 1
    return out


def _earlier(folder: Path, *, again: bool) -> dict[tuple[tuple[str, ...], int], dict[str, Any]]:
    """The cells of the sweep that is continued."""
    path = folder / "sweep.json"
    if not path.exists():
        if again and folder.exists():
            raise Refusal(
                f"sweep.resume=true: {folder} holds no sweep.json, so there is no sweep to go on "
                "with; check hydra.sweep.dir"
            )
        return {}
    if not again:
        raise Refusal(
            f"{folder} holds a sweep already; add sweep.resume=true to go on with it, or choose "
            "another hydra.sweep.dir"
        )
    cells = json.loads(path.read_text())["cells"]
    return dict(zip(_counted(c["overrides"] for c in cells), cells, strict=True))


def _combinations(master: DictConfig, loader: Any) -> list[list[str]]:
    """The overrides of each cell, in the order of Hydra's own sweeper."""
    params = [f"{k}={v}" for k, v in (master.hydra.sweeper.params or {}).items()]
    task = [o for o in master.hydra.overrides.task if not o.lstrip("+").startswith("sweep.resume")]
    parser = OverridesParser.create(config_loader=loader)
    try:
        return BasicSweeper.split_arguments(parser.parse_overrides([*params, *task]), None)[0]
    except HydraException as error:
        raise Refusal(f"these overrides are no grid: {_one_line(error)}") from error


def _compose(grid: Grid, number: int, overrides: list[str]) -> dict[str, Any]:
    """A cell with its folder, or with the reason why it cannot be composed."""
    cell: dict[str, Any] = {"number": number, "folder": None, "overrides": overrides}
    cell["refused"] = None
    try:
        cfg = grid.loader.load_sweep_config(grid.master, list(overrides))
        with open_dict(cfg):
            cfg.hydra.job.num, cfg.hydra.job.id = number, str(number)
            cfg.paths.run_dir = "."  # known when the cell runs
        task = OmegaConf.masked_copy(cfg, [k for k in cfg if k != "hydra"])
        missing = sorted(OmegaConf.missing_keys(task))
        if missing:
            raise Refusal(f"{missing[0]} must be given (it has no default)")
        cell["folder"] = str(OmegaConf.select(cfg, "hydra.sweep.subdir"))
    except (HydraException, OmegaConfBaseException, Refusal) as error:
        cell["refused"] = _one_line(error)
    return cell


def _status(folder: Path) -> str | None:
    try:
        return json.loads((folder / "summary.json").read_text())["status"]
    except (OSError, ValueError, KeyError):
        return None


def _quoted(key: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{escaped}'"


def _one_line(error: Exception) -> str:
    unknown = re.match(r"Could not override '([^']+)'", str(error))
    if unknown:
        return f"this cell has no key {unknown[1]}"
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:3])
