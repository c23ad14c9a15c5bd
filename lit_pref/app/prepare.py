"""Earlier runs that a task needs: a supervised start, sampled pairs, a reward model.

A task names them as override lists (``task.prepare``). Each is an ordinary run, made once in
``paths.cache_dir`` under a fingerprint of its resolved configuration, and gives its folder to a
key that the user left null. They run in processes of their own, so that neither a launcher nor
the random numbers of the run that waits reach them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import lit_pref
from lit_pref.app import preflight
from lit_pref.errors import Refusal

__all__ = ["Preparation", "PreparationFailed", "plan", "prepare"]

log = logging.getLogger(__name__)

_FIELDS = {"command", "gives", "takes", "overrides"}


class PreparationFailed(RuntimeError):
    """A run that was to be prepared failed; the message names its folder."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A run that another one needs.

    Attributes:
        name: what it is for, as the task calls it.
        command: ``train`` or ``generate``.
        arguments: of the command.
        searched: further folders of configurations.
        folder: the run directory, named after the fingerprint.
        path: what the key of the dependent run is given.
        config: the resolved configuration, without paths.
    """

    name: str
    command: str
    arguments: tuple[str, ...]
    searched: tuple[str, ...]
    folder: Path
    path: Path
    config: dict[str, Any]

    def done(self) -> bool:
        """Whether the run is there and finished."""
        if not self.path.exists():
            return False
        if self.command == "generate":  # its file is moved into place when it is whole
            return True
        try:
            summary = json.loads((self.folder / "summary.json").read_text())
        except (OSError, ValueError):
            return False
        return summary.get("status") == "finished"


def plan(cfg: DictConfig) -> list[Preparation]:
    """Give null keys of ``cfg`` their prepared runs; nothing is run.

    Args:
        cfg: a composed configuration, changed in place.

    Returns:
        What has still to be made, in order.

    Raises:
        Refusal: ``task.prepare`` cannot be used, or nothing fills a key that must be filled.
    """
    missing: list[Preparation] = []
    for name, node in (OmegaConf.select(cfg, "task.prepare") or {}).items():
        _check_node(name, node)
        if not _has_key(cfg, node.gives):
            continue
        value = OmegaConf.select(cfg, node.gives)
        if value is not None and Path(value).expanduser().exists():
            continue
        preparation = _describe(cfg, str(name), node)
        if value is None:
            OmegaConf.update(cfg, node.gives, str(preparation.path))
        elif Path(value) != preparation.path:
            continue  # the user's own; whoever reads it says what is wrong
        if not preparation.done():
            missing.append(preparation)
    if OmegaConf.select(cfg, "reward.name") == "prepared" and cfg.reward.path is None:
        raise Refusal(
            f"reward=prepared is for tasks that train a reward model (task=min_length, ...), and "
            f"task={cfg.task.name} trains none; use reward=learned reward.path=RUN_DIR"
        )
    return missing


def prepare(missing: Sequence[Preparation]) -> None:
    """Make what is missing, unless another process does, or has.

    Raises:
        Refusal: a run refused its configuration, or its folder cannot be made.
        PreparationFailed: a run failed.
        StoppedAtOnce: a signal came; the prepared run goes on where it was, next time.
    """
    for each in missing:
        try:
            each.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(each.folder.with_suffix(".lock"))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.info("%s: another process prepares it, waiting (%s)", each.name, each.folder)
                lock.acquire()
        except OSError as error:
            raise Refusal(
                f"prepared runs are kept in {each.folder.parent}, which cannot be written to "
                f"({error}); choose another folder with paths.cache_dir=FOLDER"
            ) from error
        try:
            if not each.done():
                _make(each)
        finally:
            lock.release()


def _make(each: Preparation) -> None:
    from lit_pref.app.launch import run_apart
    from lit_pref.callbacks.signals import StoppedAtOnce

    began = time.monotonic()
    log.info("preparing %s, once: %s %s (in %s)", each.name, _COMMANDS[each.command],
             " ".join(each.arguments), each.folder)  # fmt: skip
    outcome = run_apart(_message(each), each.folder / "prepare.log")
    if outcome.status == "finished" and each.done():
        log.info("prepared %s in %.0f s", each.name, time.monotonic() - began)
        return
    if outcome.status == "interrupted":
        raise StoppedAtOnce(outcome.exit_code - 128)
    reason = outcome.reason or f"it ended without {each.path}"
    told = f"the prepared run {each.name!r} {outcome.status}: {reason}\nIts folder: {each.folder}"
    if outcome.status == "refused":
        raise Refusal(told)
    raise PreparationFailed(f"{told} (prepare.log has what it printed); removing it starts it anew")


_COMMANDS = {"train": "python train.py", "generate": "lit-pref generate"}


def _message(each: Preparation) -> dict[str, Any]:
    """What the process that makes it is told; see ``lit_pref.app.child``."""
    message: dict[str, Any] = {"folder": str(each.folder), "logging": None}
    if each.command == "generate":
        searched = [f"--config-dir={folder}" for folder in each.searched]
        output = f"output={each.folder / 'samples.jsonl'}"
        return {**message, "generate": [*each.arguments, *searched, output]}
    again = (each.folder / "config.yaml").exists()  # an earlier process was stopped
    cfg = OmegaConf.create(each.config)
    cfg.paths.run_dir = str(each.folder)
    cfg.resume = str(each.folder) if again else None
    return {**message, "config": OmegaConf.to_yaml(cfg), "resume": again}


# --------------------------------------------------------------------------- describing


def _check_node(name: Any, node: Any) -> None:
    fields = set(node) if isinstance(node, DictConfig) else set()
    if fields != _FIELDS or node.command not in _COMMANDS:
        raise Refusal(
            f"task.prepare.{name}: expected {', '.join(sorted(_FIELDS))} with command train or "
            f"generate, got {', '.join(map(str, sorted(fields))) or node!r}"
        )


def _has_key(cfg: DictConfig, key: str) -> bool:
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return isinstance(node, DictConfig) and leaf in node and not OmegaConf.is_missing(node, leaf)


def _describe(cfg: DictConfig, name: str, node: DictConfig) -> Preparation:
    cache = Path(cfg.paths.cache_dir).expanduser().absolute()
    searched = _searched()
    try:
        given = [str(o) for o in node.overrides]
    except OmegaConfBaseException as error:
        raise Refusal(
            f"task.prepare.{name} of task={cfg.task.name} refers to a key that model="
            f"{cfg.model.name} has not ({str(error).splitlines()[0]}); use the task's own model"
        ) from error
    source = given[:1] if node.command == "generate" else []
    overrides = [_quoted(o) for o in given[len(source) :]]
    config = _compose(node.command, overrides, searched)
    config["paths"] = {**config["paths"], "cache_dir": str(cache), "run_dir": None}
    identity = {k: v for k, v in config.items() if k != "paths"}
    text = json.dumps([lit_pref.__version__, node.command, source, identity],
                      sort_keys=True, default=str)  # fmt: skip
    text = text.replace(str(cache), "")  # another place for the same runs
    mark = hashlib.sha256(text.encode()).hexdigest()[:12]
    what = identity["objective"]["name"] if node.command == "train" else "generate"
    folder = cache / "prepared" / f"{identity['task']['name']}_{what}_{mark}"
    return Preparation(
        name=name,
        command=node.command,
        arguments=(*source, *overrides),
        searched=tuple(searched),
        folder=folder,
        path=folder if node.takes is None else folder / node.takes,
        config=config,
    )


def _compose(command: str, overrides: Sequence[str], searched: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration of a prepared run, composed beside the one that waits."""
    around = GlobalHydra.instance().hydra
    try:
        with preflight.composing():
            cfg = preflight.compose_config(
                [*overrides, "paths.run_dir=null"], searched, name=command
            )
    finally:
        GlobalHydra.instance().hydra = around
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise Refusal(f"a run of task.prepare must be given {missing[0]}, which has no default")
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    return config  # type: ignore[return-value]


def _searched() -> list[str]:
    """The user's own folders of configurations, in this run."""
    if not HydraConfig.initialized():
        return []
    ours = str(preflight.config_dir())
    sources = HydraConfig.get().runtime.config_sources
    return [s.path for s in sources if s.schema == "file" and s.path != ours]


def _quoted(override: str) -> str:
    """The override with its value in quotes where Hydra's grammar needs them (paths)."""
    key, sign, value = override.partition("=")
    if not sign or re.fullmatch(r"[\w./:\-+]*|\[.*\]|\{.*\}|['\"].*['\"]", value):
        return override
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{escaped}'"
