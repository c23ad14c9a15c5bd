"""Every YAML composes, explains its keys, and fits the constructor that it names."""

import functools
import inspect
import itertools
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from lit_pref.app.build import _MODEL_KEYS, _OBJECTIVE_KEYS, _TASK_KEYS
from lit_pref.app.preflight import config_dir

CONFIGS = config_dir()
GROUPS = sorted(
    d.relative_to(CONFIGS).as_posix()
    for d in CONFIGS.rglob("*")
    if d.is_dir() and any(d.glob("*.yaml")) and "hydra" not in d.parts
)
OPTIONS = [(g, f.stem) for g in GROUPS for f in sorted((CONFIGS / g).glob("*.yaml"))]
READ_ELSEWHERE = {"model": _MODEL_KEYS, "task": _TASK_KEYS, "objective": _OBJECTIVE_KEYS}
GIVEN = {
    ("model", "hf"): ["model.path=x"],
    ("reward", "regex"): ["reward.pattern=x"],
    ("reward", "keyword"): ["reward.words=[x]"],
    ("reward", "callable"): ["reward.function=math.sqrt"],
    ("reward", "compare"): ["reward.function=math.sqrt"],
    ("reward", "learned"): ["reward.path=x"],
    ("reward", "classifier"): ["reward.path=x"],
    ("reward", "remote"): ["reward.url=http://x"],
    ("reward", "judge"): ["reward.url=http://x", "reward.model=m"],
    ("reward", "sum"): ["reward.sources=[]", "reward.weights=[]"],
}


@functools.cache
def composed(group: str, option: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        given = GIVEN.get((group, option), [])
        return compose("train", overrides=[f"{group}={option}", *given, "paths.run_dir=."])


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda v: str(v))
def test_composes_and_resolves(group: str, option: str) -> None:
    cfg = composed(group, option)
    missing = OmegaConf.missing_keys(cfg)
    assert not missing or (group, option) not in GIVEN, missing
    if not missing:
        OmegaConf.to_container(cfg, resolve=True)


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda v: str(v))
def test_keys_are_arguments_of_the_target(group: str, option: str) -> None:
    cfg = composed(group, option)
    node = cfg.get(group)
    nodes = [node] if isinstance(node, DictConfig) and "_target_" in node else []
    if group in ("callbacks", "logger"):
        nodes = [n for n in (node or {}).values() if n is not None]
    for each in nodes:
        kind = get_object(each._target_)
        taken = _arguments(kind)
        keys = {str(k) for k in each} - {"_target_", "name"}
        elsewhere = set(READ_ELSEWHERE.get(group, ()))
        assert keys - elsewhere <= taken
        assert not elsewhere & taken, "a key that the class takes never reaches it"


def _arguments(kind) -> set[str]:
    """Names of the constructor's arguments, those of its base classes included."""
    if not inspect.isclass(kind):
        return set(inspect.signature(kind).parameters)
    names: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base) or base.__init__ is not object.__init__:
            names |= set(inspect.signature(base.__init__).parameters)
    return names


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_file_says_what_it_is(path: Path) -> None:
    lines = [x for x in path.read_text().splitlines() if not x.startswith("# @package")]
    assert lines[0].startswith("# ")


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "objective").glob("*.yaml")), ids=lambda p: p.stem
)
def test_objectives_explain_every_key_and_set_no_rate_or_size(path: Path) -> None:
    lines = path.read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        key = re.match(r"([a-z]\w*):", line)
        if key and key[1] != "name":
            assert before.startswith("#") or "#" in line, f"{path.name}: {line}"
    assert not re.search(r"^(lr|batch_size|rounds|prompts_per_round):", path.read_text(), re.M)


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "experiment").glob("*.yaml")), ids=lambda p: p.stem
)
def test_experiments_explain_every_key(path: Path) -> None:
    """The list of dials says what to turn, not what the next line is."""
    lines = path.read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        key = re.match(r"([a-z]\w*):.*\S", line)
        if key and key[1] != "defaults" and not line.endswith(":"):
            said = before.startswith("# ") and not before.startswith(("# Dial", "#   "))
            assert said, f"{path.name}: {line}"


def test_packages_are_the_folders() -> None:
    """A package that pyproject.toml forgets would be missing in the wheel."""
    root = CONFIGS.parent
    text = (root / "pyproject.toml").read_text()
    listed = set(re.findall(r'^    "(lit_pref[\w.]*)",$', text, re.M))
    code = {".".join(f.parent.relative_to(root).parts) for f in (root / "lit_pref").rglob("*.py")}
    configs = {
        ".".join(("lit_pref.configs", *f.parent.relative_to(CONFIGS).parts))
        for f in CONFIGS.rglob("*.yaml")
    }
    assert listed == code | configs
