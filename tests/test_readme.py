"""The README says what is true: its commands compose, its Python runs, its files exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lit_pref.app.preflight import check_arguments

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    (.*python train\.py .*)$", README, re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compose(command, tmp_path):
    arguments = shlex.split(command.split("train.py", 1)[1], comments=True)
    if arguments[0].startswith("resume="):
        return
    check_arguments([a for a in arguments if a not in ("--help", "--cfg", "job")])


def test_there_are_two_commands_that_do_all_of_their_own_set_up():
    for which, end in (("train", "objective=dpo data=onpolicy"), ("test", "pytest")):
        out = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "readme_command.py"), which],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert out.stdout.startswith("pip install -c constraints.txt")
        assert out.stdout.strip().endswith(end)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_python_example_runs(tmp_path):
    code = re.search(r"```python\n(.*?)```", README, re.S)[1].replace("rounds=50", "rounds=2")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_named_objectives_are_those_that_exist():
    part = README.split("lists them all", 1)[1].split("On-policy DPO is", 1)[0]
    named = set(re.findall(r"`(\w+)`", part))
    assert named == {p.stem for p in (ROOT / "configs" / "objective").glob("*.yaml")}
