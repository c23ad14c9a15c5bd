"""Checks of the command line before Hydra runs: unknown groups, options and keys, by name.

Hydra says little about a misspelt group or key. Here the nearest names are suggested, and the
configuration is composed once so that every mistake is found before anything heavy is imported.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import lit_pref
from lit_pref.app.search_path import search_folder
from lit_pref.errors import Refusal

__all__ = [
    "REPLACED_OPTIONS",
    "check_arguments",
    "check_choices",
    "check_keys",
    "compose_config",
    "composing",
    "config_dir",
    "did_you_mean",
    "groups_of",
    "parse",
    "split",
]

_OVERRIDE = re.compile(
    r"^(?P<mark>\+\+|\+|~)?(?P<key>[A-Za-z_][\w./@\-\[\]]*)(=(?P<value>.*))?$", re.S
)
REPLACED_OPTIONS = {
    "accumulate_grad_batches": "use data.micro_batch_tokens (a batch is one optimizer step)",
    "gradient_clip_val": "use optimizer.clip_norm",
    "gradient_clip_algorithm": "use optimizer.clip_norm",
    "max_epochs": "use data.rounds and data.reuse (an epoch is one pass over a round)",
    "min_epochs": "use data.rounds and data.reuse (an epoch is one pass over a round)",
    "reload_dataloaders_every_n_epochs": "rounds set it themselves",
    "num_sanity_val_steps": "use callbacks.evaluation",
    "check_val_every_n_epoch": "use callbacks.evaluation.every_n_rounds",
    "val_check_interval": "use callbacks.evaluation.every_n_rounds",
    "enable_checkpointing": "use checkpoint.*",
    "callbacks": "use the callbacks group",
    "logger": "use the logger group",
}
"""Options of the Trainer that rounds and manual optimisation replace, and what to use."""

_WITH_VALUE = ("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--package")


def config_dir() -> Path:
    """The folder of our configuration groups, installed or in a clone."""
    here = Path(lit_pref.__file__).parent
    for folder in (here / "configs", here.parent / "configs"):
        if (folder / "train.yaml").exists():
            return folder
    raise Refusal(
        f"the configuration folder of lit_pref is missing beside {here}; install the package "
        "(pip install -e .) or run from a clone"
    )


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """A phrase with the nearest names, empty when none is near."""
    names = list(dict.fromkeys(names))
    leaf = word.rsplit(".", 1)[-1]
    near = [n for n in names if n.rsplit(".", 1)[-1] == leaf]  # right key, other place
    near += difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    if not near:
        leaves = {n.rsplit(".", 1)[-1]: n for n in reversed(names)}
        near = [leaves[m] for m in difflib.get_close_matches(leaf, leaves, n=2, cutoff=0.7)]
    near = list(dict.fromkeys(near))[:3]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse what cannot be composed, naming the nearest right name.

    Args:
        arguments: the command line without the program's name.

    Raises:
        Refusal: an unknown group, option or key, a missing value, an unusable run directory.
    """
    overrides, flags, searched = split(arguments)
    if flags & {"--help", "-h", "--hydra-help", "--version", "--info", "-i", "--shell-completion"}:
        return
    if flags & {"--config-path", "-cp", "--config-name", "-cn"}:
        return  # another primary configuration: Hydra's own messages
    parsed = [parse(o) for o in overrides]
    multirun = bool(flags & {"--multirun", "-m"})
    with composing():
        groups = groups_of(searched)
        choices = check_choices(parsed, groups, multirun=multirun)
        base = compose_config(choices, searched)
        _check_names(base)
        if multirun:
            _check_swept_keys(parsed, [base, *_other_bases(parsed, groups, searched)], groups)
        else:
            check_keys(parsed, base, groups)
            _check_composed(overrides, searched)
    _check_run_directory(parsed)


def _other_bases(
    parsed: Sequence[tuple[str, str, str | None]],
    groups: dict[str, list[str]],
    searched: Sequence[str],
) -> Iterator[DictConfig]:
    """The configuration with each further option of each swept group, one at a time."""
    for mark, key, value in parsed:
        if key in groups and value is not None and mark != "~":
            for option in _options(value)[1:]:
                try:
                    yield compose_config([f"{mark}{key}={option}"], searched)
                except Refusal:
                    continue  # the cell itself will say so


def _check_swept_keys(
    parsed: Sequence[tuple[str, str, str | None]],
    bases: Sequence[DictConfig],
    groups: dict[str, list[str]],
) -> None:
    """In a sweep a key must be there in some cell; cells without it are refused one by one."""
    for override in parsed:
        first: Refusal | None = None
        for base in bases:
            try:
                check_keys([override], base, groups)
                break
            except Refusal as refusal:
                first = first or refusal
        else:
            assert first is not None
            raise first


def check_choices(
    parsed: Sequence[tuple[str, str, str | None]],
    groups: dict[str, list[str]],
    *,
    multirun: bool = False,
) -> list[str]:
    """The overrides that choose an option of a group, the first of several; refuses others."""
    choices: list[str] = []
    for mark, key, value in parsed:
        if key in groups and value is not None and mark != "~":
            for option in _options(value) if multirun else [value]:
                if option not in (*groups[key], "null") and not option.startswith("$"):
                    several = _options(option)
                    if len(several) > 1 and set(several) <= set(groups[key]):
                        raise Refusal(
                            f"{key}={option} are several values, which make a sweep: add -m "
                            "(one run of each)"
                        )
                    raise Refusal(
                        f"{key}={option}: there is no such option; choose from "
                        f"{', '.join(groups[key])}.{did_you_mean(option, groups[key])}"
                    )
            first = _options(value)[0] if multirun else value
            choices.append(f"{mark}{key}={first}")
    return choices


def compose_config(
    overrides: Sequence[str], searched: Sequence[str] = (), *, name: str = "train"
) -> DictConfig:
    """The configuration ``name`` for these overrides; Hydra must be initialised."""
    extra = [f"hydra.searchpath=[{','.join(f'file://{s}' for s in searched)}]"] if searched else []
    try:
        return compose(name, overrides=[*overrides, *extra])
    except (HydraException, OmegaConfBaseException) as error:
        raise Refusal(f"the configuration cannot be composed: {_first_lines(error)}") from error


class composing:
    """Hydra initialised on our folder for the time of a block."""

    def __enter__(self) -> None:
        GlobalHydra.instance().clear()
        initialize_config_dir(str(config_dir()), version_base="1.3")

    def __exit__(self, *error: object) -> None:
        GlobalHydra.instance().clear()


def split(arguments: Sequence[str]) -> tuple[list[str], set[str], list[str]]:
    """(overrides, flags, folders given by --config-dir and hydra.searchpath)."""
    overrides: list[str] = []
    flags: set[str] = set()
    searched: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            overrides.append(word)
            if word.startswith("hydra.searchpath="):
                searched += map(search_folder, re.findall(r"[^\s\[\],'\"]+", word[17:]))
            continue
        name, _, value = word.partition("=")
        flags.add(name)
        if name in _WITH_VALUE and not value and rest:
            value = rest.pop(0)
        if name in ("--config-dir", "-cd"):
            searched.append(str(Path(value).resolve()))
        elif name == "--cfg" and not value and rest:
            rest.pop(0)
    return overrides, flags, searched


def parse(override: str) -> tuple[str, str, str | None]:
    match = _OVERRIDE.match(override)
    if match is None or (match["value"] is None and match["mark"] != "~"):
        raise Refusal(
            f"{override!r} is not an override; expected key=value, for example objective=dpo or "
            "optimizer.lr=1e-4"
        )
    return match["mark"] or "", match["key"], match["value"]


def _options(value: str) -> list[str]:
    return [v.strip() for v in value.split(",")] if re.fullmatch(r"[\w,\s./-]+", value) else [value]


def groups_of(searched: Sequence[str]) -> dict[str, list[str]]:
    """Our groups and their options, with those of the user's folders."""
    found: dict[str, set[str]] = {}
    for root in (config_dir(), *map(Path, searched)):
        for file in sorted(root.rglob("*.yaml")):
            group = file.parent.relative_to(root).as_posix()
            if group != ".":
                found.setdefault(group, set()).add(file.stem)
    return {group: sorted(options) for group, options in found.items()}


def _keys(cfg: DictConfig, prefix: str = "") -> list[str]:
    out = []
    for key in map(str, cfg):
        out.append(f"{prefix}{key}")
        if not OmegaConf.is_missing(cfg, key) and not OmegaConf.is_interpolation(cfg, key):
            value = cfg[key]
            if isinstance(value, DictConfig):
                out += _keys(value, f"{prefix}{key}.")
    return out


def check_keys(
    parsed: Sequence[tuple[str, str, str | None]],
    base: DictConfig,
    groups: dict[str, list[str]],
    *,
    command: str = "python train.py --cfg job",
) -> None:
    """Refuse keys that the configuration ``base`` does not have; ``command`` shows them all."""
    keys = _keys(base)
    known = set(keys)
    tops = [*(g for g in groups if "/" not in g), *(k for k in map(str, base) if k not in groups)]
    for mark, key, _ in parsed:
        if key in groups or "/" in key or "@" in key or key.startswith("hydra."):
            continue
        if mark in ("+", "++") or key in known or _inside_open_node(key, base):
            continue
        top, _, leaf = key.partition(".")
        if top == "trainer" and leaf in REPLACED_OPTIONS:
            raise Refusal(f"{key} does not apply here; {REPLACED_OPTIONS[leaf]}")
        names = keys if "." in key and (top in known or top in groups) else [*tops, *keys]
        raise Refusal(f"{key}: there is no such key.{did_you_mean(key, names)} All keys: {command}")


def _inside_open_node(key: str, base: DictConfig) -> bool:
    """A key below a node that is free-form (a mapping whose value is null, like task.columns)."""
    parts = key.split(".")
    for n in range(1, len(parts)):
        parent = OmegaConf.select(base, ".".join(parts[:n]), throw_on_missing=False)
        if parent is None and ".".join(parts[:n]) in _keys(base):
            return True
    return False


def _check_names(base: DictConfig) -> None:
    """Folders and tables call a run by the names of these groups."""
    for group in ("task", "model", "objective", "data", "reward"):
        if isinstance(base.get(group), DictConfig) and "name" not in base[group]:
            raise Refusal(
                f"the file of this {group} has no key name, which folders and tables show; add a "
                f"line such as name: my_{group}"
            )


def _check_composed(overrides: Sequence[str], searched: Sequence[str]) -> None:
    """The whole configuration: composition errors, values that must be given."""
    kept = [o for o in overrides if not o.lstrip("+~").startswith("hydra.")]
    cfg = compose_config([*kept, "paths.run_dir=."], searched)
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise Refusal(
            f"{missing[0]} must be given (it has no default): add {missing[0]}=... to the command"
        )


def _check_run_directory(parsed: Sequence[tuple[str, str, str | None]]) -> None:
    given = [v for _, key, v in parsed if key in ("hydra.run.dir", "hydra.sweep.dir") and v]
    folder = Path(given[-1].strip("'\"") if given else "runs").absolute()
    if "${" in str(folder):
        folder = Path(str(folder).split("${")[0])
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise Refusal(
            f"the run directory cannot be made: {folder} is not a folder that can be written to; "
            "choose another with hydra.run.dir=FOLDER"
        )


def _first_lines(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:3])
