"""What the documentation says is what the code does."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lit_pref.app.objectives import COLUMNS, declarations, text_table
from lit_pref.app.preflight import check_arguments
from lit_pref.metrics.glossary import GLOSSARY

ROOT = Path(__file__).parents[1]


def load_script():
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


docs = load_script()
WRITTEN = docs.pages()
NAMES = sorted(d.name for d in declarations())
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands():
    """Every ``python train.py`` line of the README and the pages, with its file."""
    found = {}
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            for command in re.findall(r"(?:^|&& )(?:    )?(python train\.py [^`|]*)$", line):
                found.setdefault(command.split("  #")[0].strip(), page.relative_to(ROOT))
    return sorted(found.items())


@pytest.mark.parametrize("path", sorted(WRITTEN), ids=lambda p: p.name)
def test_generated_pages_are_current(path):
    assert path.exists(), "run: python scripts/make_docs.py"
    assert path.read_text() == WRITTEN[path], "run: python scripts/make_docs.py"


def test_no_page_of_an_objective_that_is_gone():
    written = {p.stem for p in docs.FOLDER.glob("*.md")}
    assert written == {*NAMES, "index", "learning", "parity"}


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_has_a_note_and_recorded_metrics(name):
    note = docs.load_notes()[name]["note"]
    assert note.strip().endswith("."), "docs/objectives/notes.yaml: a sentence or two"
    assert docs.load_metrics()[name][""], f"run: python scripts/make_docs.py --record {name}"


def test_no_note_is_left_over():
    assert set(docs.load_notes()) <= set(NAMES)
    assert set(docs.load_metrics()) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_explained(name):
    text = (ROOT / "configs" / "objective" / f"{name}.yaml").read_text()
    assert docs.headline(text)
    unexplained = [key for key, default, comment in docs.yaml_keys(text) if default and not comment]
    assert not unexplained


@pytest.mark.parametrize("name", NAMES)
def test_every_page_has_a_formula(name):
    page = WRITTEN[docs.FOLDER / f"{name}.md"]
    assert "```math" in page or "$`" in page, "no formula in the docstrings of class or loss"
    assert re.search(r"arXiv \d{4}\.\d{4,5}", page)


BY_REWARDS = {
    "round/true_reward", "round/reward_accuracy", "round/reward_held_out_accuracy",
    "reward/requests", "reward/retries", "reward/cache_hits", "reward/cache_damaged",
    "reward/undecided", "reward/unclear", "reward/cut",
}  # fmt: skip
"""Logged with some rewards alone; tests/integration/test_rewards_in_runs.py sees them."""

BY_FILES = {
    "data/dropped_prompts", "data/dropped_pairs", "data/dropped_validation",
    "data/pairs_held_out", "data/cut_prompts", "data/cut_responses",
    "data/unended_responses", "data/repeated_prompts",
}  # fmt: skip
"""Logged where a task reads files; tests/tasks/test_text.py sees them."""


def test_the_glossary_is_what_is_logged():
    logged = {n for runs in docs.load_metrics().values() for names in runs.values() for n in names}
    assert logged - set(GLOSSARY) == set(), "logged, but not in lit_pref/metrics/glossary.py"
    assert set(GLOSSARY) - logged - BY_REWARDS - BY_FILES == set(), (
        "in the glossary, but logged by no objective"
    )


@pytest.mark.parametrize(("command", "page"), commands())
def test_commands_of_the_pages_are_right(command, page, monkeypatch, tmp_path):
    if "FOLDER" in command or "my_" in command or "resume=" in command:
        pytest.skip("it names a file of the reader")
    arguments = shlex.split(command, comments=True)[2:]
    for argument in arguments:  # files that are shipped exist
        if match := re.fullmatch(r"[\w.]+=(docs/\S+)", argument):
            assert (ROOT / match[1]).exists()
    monkeypatch.chdir(tmp_path)
    check_arguments(arguments)


def test_there_are_commands():
    assert len(commands()) > len(NAMES)


def test_the_command_prints_the_table():
    done = subprocess.run(
        [sys.executable, "-m", "lit_pref.app.cli", "objectives"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == text_table().strip()
    for column in COLUMNS:
        assert column in done.stdout.splitlines()[0]
    assert {line.split()[0] for line in done.stdout.splitlines()[1:]} == set(NAMES)


# --------------------------------------------------------------------------- the generator itself


def test_docstrings_become_markdown():
    text = docs.prose(
        r"""One line with ``code`` and :math:`x^2`.

        .. math:: a
            + b

        === =====
        one two
        === =====
        1   2 | 3
        === =====

        Args:
            a: gone.
        """
    )
    assert text == (
        "One line with `code` and $`x^2`$.\n\n```math\na\n+ b\n```\n\n"
        "| one | two |\n|---|---|\n| 1 | 2 \\| 3 |"
    )


def test_yaml_comments_belong_to_the_key_below():
    text = "# Head.\nname: x\n# The a,\n# in two lines.\na: 1\n# Part.\nb:\n  # Inner.\n  c: 2\n"
    assert docs.yaml_keys(text) == [
        ("a", "1", "The a, in two lines."), ("b", "", "Part."), ("b.c", "2", "Inner."),
    ]  # fmt: skip
    assert docs.headline(text) == "Head."


def test_recorded_names_are_the_columns_of_a_run(tmp_path, monkeypatch):
    """The record of one objective is made again and is the committed one."""
    monkeypatch.setattr(docs, "METRICS", tmp_path / "metrics.json")
    committed = docs.FOLDER / "metrics.json"
    docs.record(["ppo"])
    again = (tmp_path / "metrics.json").read_text()
    assert json.loads(again)["ppo"] == json.loads(committed.read_text())["ppo"]
