"""A new objective is one module, one YAML and one test: nothing else is edited."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEFT_OUT = {".git", "runs", "multirun", "outputs", "build", "dist"}

MODULE = '''
"""A hinge on the difference of log-probs, without a reference."""

import torch

from lit_pref.objectives.families.pairwise import PairwiseModule
from lit_pref.types import Needs


class Hinged(PairwiseModule):
    """Chosen above rejected by one nat per token."""

    needs = Needs(pairs=True, responses=2)
    negative_gradient = True
    paper = "2305.10425"

    def pair_loss(self, chosen, rejected, *, margin):
        gap = chosen.mean_logps - rejected.mean_logps
        return torch.relu(1 - gap), {"rewards/margins": gap}
'''
YAML = """# A hinge, for a test.
name: hinged
_target_: lit_pref.objectives.hinged.Hinged
# Pairs made of a group: best_worst, all, random, bradley_terry.
pairs: ${task.sizes.pairs}
# 1 is as published.
negative_weight: 1.0
"""
TEST = """
import pytest
from lit_pref.objectives.hinged import Hinged
from lit_pref.testing import ObjectiveTester
from lit_pref.testing.batches import make_batch, pair_numbers, whole_loss


class TestHinged(ObjectiveTester):
    objective = Hinged

    def test_loss(self):
        module, round = self.prepared()
        batch = make_batch(round)
        gaps = [p.w / p.len_w - p.l / p.len_l for p in pair_numbers(module, batch)]
        expected = sum(max(0.0, 1 - g) for g in gaps) / len(gaps)
        assert whole_loss(module, batch) == pytest.approx(expected, rel=1e-6)
"""
RUN = """
import sys
import lit_pref, pytest
from lit_pref.app.objectives import markdown_table, text_table
print(lit_pref.__file__)
print(text_table())
print(markdown_table())
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.fixture
def copy(tmp_path):
    """The tree without its history and runs."""
    folder = tmp_path / "copy"
    for name in _files():
        if name.split("/")[0] not in LEFT_OUT and (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)
    return folder


def _files():
    """Tracked and new files; without git (an unpacked archive) the folders that matter."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return [name for name in listed.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        folders = ("lit_pref", "configs", "tests", "scripts", "docs")
        found = [p for f in folders for p in (ROOT / f).rglob("*") if "__pycache__" not in p.parts]
        return [p.relative_to(ROOT).as_posix() for p in found] + ["pyproject.toml", "train.py"]


def test_three_files_are_enough(copy, session_cache):
    new = {
        "lit_pref/objectives/hinged.py": MODULE,
        "configs/objective/hinged.yaml": YAML,
        "tests/objectives/test_hinged.py": TEST,
    }
    for name, text in new.items():
        assert not (copy / name).exists()
        (copy / name).write_text(text)
    tests = [
        "tests/objectives/test_hinged.py",
        "tests/objectives/test_learning.py::test_verdict",  # has no committed verdict: skipped
        "tests/integration/test_matrix.py::test_cell",
        "tests/test_configs.py",
    ]
    environment = {**os.environ, "PYTHONPATH": str(copy), "LIT_PREF_CACHE": str(session_cache)}
    for name in [k for k in environment if k.startswith("PYTEST_")]:
        del environment[name]
    done = subprocess.run(
        [sys.executable, "-c", RUN, "-q", "-n0", "-k", "hinged", "-p", "no:cacheprovider", "-rA", *tests],
        cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    out = done.stdout
    assert done.returncode == 0, out[-3000:] + done.stderr[-1000:]
    assert out.splitlines()[0] == str(copy / "lit_pref" / "__init__.py")
    row = next(line.split() for line in out.splitlines() if line.startswith("hinged "))
    assert row == ["hinged", "pairwise", "yes", "-", "-", "yes", "-", "yes", "2305.10425"]
    assert "| [`hinged`](hinged.md) | pairwise | yes |" in out
    for passed in ("test_negative_weight", "test_processes", "test_gradient_against_finite"):
        assert f"PASSED tests/objectives/test_hinged.py::TestHinged::{passed}" in out
    for source in ("onpolicy", "offline", "mixed", "replay"):
        assert f"PASSED tests/integration/test_matrix.py::test_cell[hinged-{source}]" in out
    assert "no committed result: python scripts/learning_table.py hinged" in out
