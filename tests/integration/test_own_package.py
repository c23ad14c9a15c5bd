"""The examples of the guides, as a user has them: own package, plain Python, LightningCLI."""

import importlib
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lit_pref as lp
from lit_pref.testing import TinyPolicy
from lit_pref.types import TokenStats

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guide"
_FILE = re.compile(r"^`(?P<name>[^`\n]+)`:\n\n```\w+\n(?P<text>.*?)^```", re.S | re.M)
SMALL = ["data=onpolicy", "data.rounds=2", "callbacks=minimal", "export=false"]


def extract(page: str, folder: Path) -> list[str]:
    """Write the files that a page of the guide shows; their names."""
    found = list(_FILE.finditer((GUIDE / page).read_text()))
    for match in found:
        path = folder / match["name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(match["text"])
    return [m["name"] for m in found]


def python(*arguments, cwd, paths=()):
    """Run the interpreter of the tests, away from the clone, with the packages on its path."""
    path = os.pathsep.join(map(str, [*paths, ROOT]))
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        timeout=300,
    )


def console(*arguments, cwd, paths):
    """The console entry."""
    entry = "from lit_pref.app.cli import main; main()"
    return python("-c", entry, *arguments, cwd=cwd, paths=paths)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The package of the guide, written down, built and installed: (its folder, where it is)."""
    source = tmp_path_factory.mktemp("source")
    names = extract("your_own_objective.md", source)
    assert "my_prefs/losses.py" in names and "my_prefs/conf/objective/mine.yaml" in names
    target = tmp_path_factory.mktemp("installed")
    out = python(
        "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
        "--disable-pip-version-check", "--target", target, source, cwd=source,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert (target / "my_prefs" / "conf" / "objective" / "mine.yaml").exists()
    return source, target


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_one_class_and_one_yaml_train(package, tmp_path):
    source, target = package
    out = console(
        "train", "--config-dir", source / "my_prefs" / "conf", "objective=mine", *SMALL,
        "objective.negative_weight=0.5", "hydra.run.dir=run", cwd=tmp_path, paths=[target],
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    done = summary(tmp_path / "run")
    assert (done["objective"], done["status"], done["steps"]) == ("mine", "finished", 2)
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "gap" in header and "loss" in header
    # what was trained is measured without the package: its weights are a policy like any other
    out = console("evaluate", "run", "responses=1", "output=ev", cwd=tmp_path, paths=[])
    assert out.returncode == 0, out.stderr
    found = json.loads((tmp_path / "ev" / "evaluation.json").read_text())
    assert found["metrics"]["reward"]["mean"] == pytest.approx(done["reward_final"], abs=1e-9)


def test_the_search_path_finds_it_and_dpo_is_subclassed(package, tmp_path):
    _, target = package
    out = console(
        "train", "hydra.searchpath=[pkg://my_prefs.conf]", "objective=shifted_dpo", *SMALL,
        "objective.beta=0.3", "hydra.run.dir=run", cwd=tmp_path, paths=[target],
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert summary(tmp_path / "run")["objective"] == "shifted_dpo"
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "my_prefs.shifted.ShiftedDPO" in config and "beta: 0.3" in config


def test_its_names_are_suggested_and_a_missing_package_is_named(package, tmp_path):
    _, target = package
    place = "hydra.searchpath=[pkg://my_prefs.conf]"
    out = console("train", place, "objective=mien", cwd=tmp_path, paths=[target])
    assert out.returncode == 2 and "Did you mean mine" in out.stderr
    out = console("train", place, "objective=mine", cwd=tmp_path, paths=[])
    assert out.returncode == 2 and "there is no package 'my_prefs.conf'" in out.stderr


def test_the_battery_of_the_guide_passes(package):
    source, target = package
    out = python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_mine.py",
        cwd=source, paths=[target],
    )  # fmt: skip
    assert out.returncode == 0, out.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", out.stdout)[1]) > 10


def side(logps, lengths):
    """Responses with a reference log-prob of 0."""
    from lit_pref.objectives.families.pairwise import Side

    logps, index = torch.tensor(logps), torch.arange(len(logps))
    return Side(
        logps=logps, ref_logps=torch.zeros(len(logps)), lengths=torch.tensor(lengths), index=index,
        token_logps=logps, owner=index, stats=TokenStats(logps=logps),
    )  # fmt: skip


def test_the_losses_by_hand(package, monkeypatch):
    _, target = package
    monkeypatch.syspath_prepend(target)
    losses = importlib.import_module("my_prefs.losses")
    shifted = importlib.import_module("my_prefs.shifted")
    chosen, rejected = side([1.0, 0.0], [1, 2]), side([-1.0, 0.0], [3, 2])
    policy, margin = TinyPolicy(), torch.zeros(2)
    dpo = shifted.ShiftedDPO(policy, reference=lp.FrozenReference(), beta=0.5)
    found, _ = dpo.pair_loss(chosen, rejected, margin=margin)
    # gaps 2 and 0, four tokens each: -log sigmoid(0.5 gap) / 4
    wanted = torch.tensor([math.log1p(math.exp(-1.0)) / 4, math.log(2) / 4])
    torch.testing.assert_close(found, wanted)
    mine = losses.Mine(policy, reference=lp.FrozenReference())
    found, metrics = mine.pair_loss(chosen, rejected, margin=margin)
    torch.testing.assert_close(found, torch.tensor([1 - 0.1 * 2, 1.0]))
    torch.testing.assert_close(metrics["gap"], torch.tensor([2.0, 0.0]))


def test_plain_python_in_ten_lines(tmp_path):
    assert extract("python.md", tmp_path) == ["train_bandit.py"]
    code = (tmp_path / "train_bandit.py").read_text()
    assert "hydra" not in code
    assert sum(bool(re.match(r"\w", line)) for line in code.splitlines()) <= 11
    out = python("train_bandit.py", cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    found = re.search(r"'val/reward': ([\d.]+)", out.stdout)
    assert found and float(found[1]) > 0.05  # 0.043 before training
    used = python(
        "-c", "import lit_pref as lp, sys; lp.DPO; lp.OnPolicyDataModule; "
        "sys.exit('hydra' in sys.modules or 'omegaconf' in sys.modules)", cwd=tmp_path,
    )  # fmt: skip
    assert used.returncode == 0


def test_lightning_cli(tmp_path):
    found = pytest.importorskip("jsonargparse", minversion="4.53")
    if importlib.util.find_spec("docstring_parser") is None:
        pytest.skip("needs jsonargparse[signatures]")
    assert extract("lightning_cli.md", tmp_path) == ["cli.py", "dpo.yaml", "my_task.py"]
    (tmp_path / "both.py").write_text(
        "import runpy, sys\n"
        "for command in ('fit', 'validate', 'predict'):\n"
        "    sys.argv = ['cli.py', command, '--config', 'dpo.yaml', '--trainer.logger', 'false']\n"
        "    runpy.run_path('cli.py', run_name='__main__')\n"
    )
    out = python("both.py", cwd=tmp_path, paths=[Path(found.__file__).parents[1]])
    assert out.returncode == 0, out.stderr[-3000:]
    assert "val/reward" in out.stdout
    assert (tmp_path / "checkpoints").is_dir()
