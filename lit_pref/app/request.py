"""What ``lit-pref evaluate``, ``generate`` and ``export`` are asked for; imports no torch.

A request names a run directory, a checkpoint file or a model folder, and overrides. A run brings
the parts of its own ``config.yaml``; groups and values on the command line win.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lit_pref.app import preflight
from lit_pref.errors import Refusal

__all__ = ["Request", "Source", "find_source", "new_output", "parse_request", "run_command"]

_RUN_PARTS = ("task", "model", "reward", "sampler")
"""Nodes that a run's configuration brings."""


@dataclass(kw_only=True, slots=True)
class Source:
    """Where the policy comes from.

    Attributes:
        run: the run directory, if it is one.
        checkpoint: ``last``, ``best``, ``export`` or a file; None leaves it to the configuration.
        folder: a model folder in Hugging Face format, if it is one.
    """

    run: Path | None = None
    checkpoint: str | None = None
    folder: Path | None = None

    @property
    def name(self) -> str | None:
        """As the user gave it."""
        return None if self.run is self.folder is None else str(self.run or self.folder)


@dataclass(kw_only=True, slots=True)
class Request:
    """A parsed command line.

    Attributes:
        cfg: the configuration.
        source: where the policy comes from.
        chosen: groups and keys that were given on the command line.
    """

    cfg: DictConfig
    source: Source
    chosen: set[str]


def find_source(path: str | None) -> Source:
    """What a path on the command line is.

    Raises:
        Refusal: nothing that has a policy.
    """
    if path is None:
        return Source()
    where = Path(path).expanduser()
    if where.is_file() and where.suffix == ".ckpt":
        for run in (where.parent, where.parent.parent):
            if (run / "config.yaml").exists():
                return Source(run=run, checkpoint=str(where))
        raise Refusal(
            f"{path}: expected a checkpoint in the checkpoints/ folder of a run directory, beside "
            "its config.yaml; give the run directory and checkpoint=FILE"
        )
    if (where / "config.yaml").exists():
        return Source(run=where)
    if (where / "config.json").exists():
        if where.name == "export" and (where.parent / "config.yaml").exists():
            return Source(run=where.parent, checkpoint="export")
        return Source(folder=where)
    what = "an empty or unknown folder" if where.is_dir() else "not a folder"
    raise Refusal(
        f"{path} is {what}; expected a run directory (it has config.yaml), a model folder in "
        "Hugging Face format (it has config.json) or a checkpoint file (.ckpt)"
    )


def parse_request(name: str, arguments: Sequence[str]) -> Request:
    """Compose the root configuration ``name`` for a command line.

    Args:
        name: ``"evaluate"`` or ``"generate"``.
        arguments: without the program's name.

    Raises:
        Refusal: an unknown path, group, option or key; the message names the nearest right one.
    """
    overrides, flags, searched = preflight.split(arguments)
    if unknown := sorted(flags - {"--cfg", "--config-dir", "-cd"}):
        raise Refusal(
            f"{unknown[0]}: there is no such flag; lit-pref {name} has --help, --cfg job and "
            "--config-dir FOLDER"
        )
    paths = [o for o in overrides if ("=" not in o or Path(o).exists()) and o[:1] != "~"]
    if len(paths) > 1:
        raise Refusal(
            f"expected one run directory or model folder, got {len(paths)}: {', '.join(paths)}"
        )
    source = find_source(paths[0] if paths else None)
    parsed = [preflight.parse(o) for o in overrides if o not in paths and o[:6] != "hydra."]
    chosen = {key for _, key, _ in parsed}
    if source.folder is not None and "task" not in chosen:
        parsed = [("", "task", "text"), *parsed]
    if source.folder is not None and "model" not in chosen:
        parsed = [("", "model", "hf"), ("", "model.path", json.dumps(str(source.folder))), *parsed]
    cfg = _compose(name, parsed, searched, source)
    if source.checkpoint is None and source.run is not None:
        source.checkpoint = str(cfg.checkpoint)
    return Request(cfg=cfg, source=source, chosen=chosen)


Parsed = Sequence[tuple[str, str, str | None]]


def _compose(name: str, parsed: Parsed, searched: Sequence[str], source: Source) -> DictConfig:
    with preflight.composing():
        bare = preflight.compose_config(["paths.run_dir=."], searched, name=name)
        groups = {k: v for k, v in preflight.groups_of(searched).items() if k in bare}
        choices = preflight.check_choices(parsed, groups)
        base = preflight.compose_config([*choices, "paths.run_dir=."], searched, name=name)
    OmegaConf.set_struct(base, False)
    if source.run is not None:
        _take_parts(name, base, _read_run(source.run), {k for _, k, _ in parsed if k in groups})
    command = f"lit-pref {name} --cfg job"
    preflight.check_keys(parsed, base, groups, command=command)
    for mark, key, value in parsed:
        if key not in groups:
            _set(base, mark, key, value)
    if missing := sorted(OmegaConf.missing_keys(base)):
        raise Refusal(
            f"{missing[0]} must be given (it has no default): add {missing[0]}=... to the command"
        )
    return base


def _read_run(folder: Path) -> DictConfig:
    try:
        cfg = OmegaConf.load(folder / "config.yaml")
    except Exception as error:  # any kind of damage
        raise Refusal(f"{folder}/config.yaml cannot be read ({error}); restore it") from error
    if not isinstance(cfg, DictConfig) or not all(part in cfg for part in _RUN_PARTS):
        raise Refusal(
            f"{folder}/config.yaml is not the configuration of a run: expected "
            f"{', '.join(_RUN_PARTS)} in it; give the folder that a run printed at its end"
        )
    return cfg


def _take_parts(name: str, base: DictConfig, run: DictConfig, chosen: set[str]) -> None:
    """The run's parts, except those whose group is on the command line."""
    for part in _RUN_PARTS:
        if part not in chosen and not (part == "sampler" and "task" in chosen):
            base[part] = run[part]
    if "trainer" not in chosen:
        base.trainer.precision = OmegaConf.select(run, "trainer.precision") or "32-true"
    if name == "evaluate" and "sampler" not in chosen:
        itself = {"temperature": 1.0, "top_p": 1.0, "precision": "policy"}  # is measured
        for key, value in itself.items():
            if key in base.sampler:
                base.sampler[key] = value


def _set(cfg: DictConfig, mark: str, key: str, value: str | None) -> None:
    if mark == "~":
        raise Refusal(f"~{key}: nothing can be removed here; expected key=value")
    try:
        OmegaConf.update(cfg, key, OmegaConf.create(f"value: {value}").value, force_add=True)
    except (OmegaConfBaseException, ValueError) as error:
        raise Refusal(f"{key}={value} is not a value: {error}") from error
    except Exception as error:  # the YAML parser has errors of its own
        raise Refusal(f"{key}={value} cannot be read as a value ({error}); quote it") from error


def new_output(name: str) -> Path:
    """A new folder for results: ``runs/<date>/<time>_<name>``."""
    path = Path("runs") / time.strftime("%Y-%m-%d") / f"{time.strftime('%H-%M-%S')}_{name}"
    return path if not path.exists() else path.with_name(f"{path.name}_{os.getpid()}")


def run_command(name: str, arguments: Sequence[str], usage: str, work: Callable[..., Any]) -> None:
    """Parse, work and exit: 0 done, 1 failed, 2 refused, 130 stopped by Ctrl-C.

    Args:
        name: the root configuration.
        arguments: without the program's name.
        usage: printed for ``--help``.
        work: is given the ``Request``.
    """
    if any(a in ("-h", "--help") for a in arguments):
        print(usage, end="")
        return
    if "" not in sys.path:  # dotted paths of the user's own modules, as with python -m
        sys.path.append("")
    with exit_codes():
        request = parse_request(name, arguments)
        if any(a.startswith("--cfg") for a in arguments):
            print(OmegaConf.to_yaml(request.cfg), end="")
            return
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
        work(request)


class exit_codes:
    """One message and the right exit code for what goes wrong inside; nothing for success."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, SystemExit):
            return
        if isinstance(error, Refusal):
            print(f"Refused: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        if isinstance(error, KeyboardInterrupt):
            print("Interrupted.", file=sys.stderr)
            raise SystemExit(130) from None
        # Their messages say it all: reward, prompt and response; the folder of the prepared run.
        if type(error).__name__ in ("RewardError", "PreparationFailed"):
            print(f"Failed: {error}", file=sys.stderr)
            raise SystemExit(1) from None
