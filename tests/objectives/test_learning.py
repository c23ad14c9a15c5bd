"""Who learns on the token bandit: the committed verdicts of docs/objectives/learning.json hold.

Settings and margin: learning_settings.py, fixed before the first run. Objectives that do not learn
there are in the table with that verdict. One seed in the default run, the others with ``-m slow``.
"""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "learning_table.py"


def load_script():
    spec = importlib.util.spec_from_file_location("learning_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


table = load_script()
settings = table.SETTINGS
OBJECTIVES = table.objectives()
OTHER_SEEDS = [s for s in settings.SEEDS if s != settings.CI_SEED]


def check(objective, seed, folder):
    cells = table.read().get(objective)
    if cells is None:
        pytest.skip(f"no committed result: python scripts/learning_table.py {objective}")
    found = table.run_cell(objective, seed, folder)
    assert table.learned(found) == table.learned(cells[str(seed)]), (found, cells[str(seed)])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_verdict(objective, tmp_path):
    check(objective, settings.CI_SEED, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("seed", OTHER_SEEDS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_verdict_of_other_seeds(objective, seed, tmp_path):
    check(objective, seed, tmp_path / "run")


def test_every_result_has_all_seeds():
    results = table.read()
    assert set(results) <= set(OBJECTIVES), "learning.json names objectives that are gone"
    for name, cells in results.items():
        assert set(cells) == {str(s) for s in settings.SEEDS}, name


def test_the_page_is_made_from_the_results():
    assert table.PAGE.read_text() == table.page(table.read())


def test_a_verdict_is_a_gain_of_the_margin():
    start = 0.1
    assert table.learned({"reward_start": start, "reward_final": start + settings.MARGIN + 1e-9})
    assert not table.learned({"reward_start": start, "reward_final": start + 0.04})
