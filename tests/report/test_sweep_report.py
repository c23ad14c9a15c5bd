"""Tables and page of a sweep, from files written by hand."""

import csv
import json
import math

import pytest

from lit_pref.errors import Refusal
from lit_pref.report import is_sweep, read_sweep, write_sweep
from lit_pref.report.statistics import estimate, t_quantile
from lit_pref.report.sweep_page import _scale
from lit_pref.report.sweep_table import as_text


def test_interval_by_hand():
    """1, 2, 3: mean 2, s = 1, half = t(2) / sqrt(3) = 4.3027 / 1.7321."""
    found = estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-6)
    assert estimate([5.0]).half is None
    assert estimate([]).mean is None


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.7062), (9, 2.2622), (30, 2.0423), (31, 2.0395), (100, 1.9840)]
)
def test_quantiles_of_student(freedom, t):
    assert t_quantile(freedom) == pytest.approx(t, abs=1e-4)


def cell(number, overrides, status="finished", **summary):
    return number, overrides, {"status": status, "seed": 0, **summary}


def test_a_seed_counts_once_also_where_it_is_the_default_one(tmp_path):
    """The grid was made without seeds, and grew by seed=0,1: the first cell is seed 0 again."""
    listed = []
    cells = [
        ([], "finished", 0, 0.2), (["seed=0"], "finished", 0, 0.2), (["seed=1"], "finished", 1, 0.4)
    ]  # fmt: skip
    for number, (seed, status, value, reward) in enumerate(cells):
        folder = tmp_path / str(number)
        folder.mkdir()
        summary = {"status": status, "seed": value, "reward_final": reward, "objective": "dpo"}
        (folder / "summary.json").write_text(json.dumps(summary))
        listed.append(
            {"number": number, "folder": str(number), "overrides": ["data.reuse=2", *seed]}
        )
    (tmp_path / "sweep.json").write_text(json.dumps({"cells": listed}))
    record = read_sweep(tmp_path)
    assert len(record.cells) == 3
    [setting] = record.settings()
    assert (setting.finished, len(setting.cells), setting.repeated) == (2, 2, 1)
    assert setting.measure("reward_final").mean == pytest.approx(0.3)
    assert setting.notes() == ["1 more with the same seeds, not counted"]
    (tmp_path / "0" / "summary.json").write_text(json.dumps({"status": "failed", "seed": 0}))
    [setting] = read_sweep(tmp_path).settings()  # the one that finished stands for the seed
    assert setting.finished == 2


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.0996, 0.1004, "0.09960 to 0.10040"), (0.0, 1.0, "0.0 to 1.0"), (-120.0, 80.0, "-120 to 80")
    ],
)  # fmt: skip
def test_the_ends_of_a_scale_differ(low, high, text):
    assert _scale(low, high) == text


@pytest.fixture
def sweep(tmp_path):
    """Two settings with two seeds, one refused before it had a folder, one that never ran."""
    cells = [
        cell(0, ["objective=dpo", "seed=0"], reward_final=0.2, samples=100, wall_seconds=2.0),
        cell(1, ["objective=dpo", "seed=1"], reward_final=0.4, samples=100, wall_seconds=4.0),
        cell(2, ["objective=<b>x</b>", "seed=0"], "failed", reason="Error: a | b\nc"),
        cell(3, ["objective=<b>x</b>", "seed=1"], reward_final=0.5, samples=7, wall_seconds=1.0),
    ]
    listed = []
    for number, overrides, summary in cells:
        folder = tmp_path / f"{number}_run"
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps(summary))
        listed.append({"number": number, "folder": folder.name, "overrides": overrides})
    (tmp_path / "0_run" / "report.html").write_text("x")
    listed.append(
        {"number": 4, "folder": None, "overrides": ["objective=kto", "seed=0"], "refused": "no key"}
    )
    listed.append({"number": 5, "folder": "5_run", "overrides": ["objective=kto", "seed=1"]})
    for entry in listed:
        entry["overrides"] = [*entry["overrides"], "+task=b", "hydra.verbose=true"]
    (tmp_path / "sweep.json").write_text(json.dumps({"cells": listed}))
    return tmp_path


def test_cells_settings_and_statuses(sweep):
    found = read_sweep(sweep)
    assert [c.status for c in found.cells] == [
        "finished", "finished", "failed", "finished", "refused", "missing",
    ]  # fmt: skip
    assert (found.varying, found.columns) == (["objective", "seed"], ["objective"])
    assert found.fixed() == {"task": "b"}
    dpo, strange, kto = found.settings()
    assert (dpo.measure("reward_final").mean, dpo.finished) == (pytest.approx(0.3), 2)
    assert dpo.notes() == []
    assert strange.measure("reward_final").mean == 0.5  # of the seed that finished
    assert strange.notes() == ["1 of 2 failed: Error: a | b\nc"]
    assert kto.notes() == ["1 of 2 refused: no key", "1 of 2 missing"]


def test_csv_has_a_row_per_cell(sweep):
    write_sweep(sweep)
    rows = list(csv.DictReader((sweep / "table.csv").open()))
    assert [r["cell"] for r in rows] == list("012345")
    assert [r["seed"] for r in rows[4:]] == ["0", "1"]  # from the overrides: no summary
    assert rows[0]["reward_final"] == "0.2" and rows[4]["reward_final"] == ""
    assert (rows[4]["status"], rows[4]["reason"]) == ("refused", "no key")


def test_the_terminal_shows_the_settings_that_finished(sweep):
    """The intervals as in the next test; kto has nothing to show."""
    assert as_text(read_sweep(sweep)).splitlines() == [
        "objective  seeds   final reward   final KL",
        "dpo        2 of 2  0.300 +- 1.27  -",
        "<b>x</b>   1 of 2  0.500          -",
        "mean over seeds +- half the 95 % confidence interval",
    ]
    assert as_text(read_sweep(sweep), most=1).splitlines()[2] == "... and 1 more in table.md"


def test_markdown_by_hand(sweep):
    """0.2, 0.4: mean 0.3, s = 0.2 / sqrt 2, half = 12.7062 * 0.1 = 1.27062."""
    write_sweep(sweep)
    lines = (sweep / "table.md").read_text().splitlines()
    assert lines[0] == "6 cells: 3 finished, 1 failed, 1 refused, 1 missing"
    dpo = [c.strip() for c in lines[6].strip("|").split(" | ")]
    assert dpo == ["dpo", "2 of 2", "0.300 +- 1.27", "-", "100", "-", "3.0 s", ""]
    assert lines[7].count(" | ") == lines[6].count(" | ")  # a reason cannot break the table
    assert "Error: a \\| b c" in lines[7]


def test_page_is_whole_escaped_and_alone(sweep):
    write_sweep(sweep)
    page = (sweep / "report.html").read_text()
    assert "<b>x</b>" not in page.replace("<span>task <b>b</b>", "")
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert page.count("<tr>") == 1 + 3 + 1 + 6
    assert '<a href="0_run/report.html">' in page and '"1_run/report.html"' not in page
    assert page.count('<svg class="range"') == 2  # kto has no value


def test_folders_of_another_sweeper_are_found(tmp_path):
    """Optuna and a user's own sweeper leave run directories and Hydra's overrides."""
    (tmp_path / "multirun.yaml").write_text("{}")
    for number in (10, 2):
        folder = tmp_path / f"{number}_dpo"
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "config.yaml").write_text("{}")
        (folder / ".hydra" / "overrides.yaml").write_text(f"[optimizer.lr=0.{number}]")
        (folder / "summary.json").write_text(json.dumps({"status": "finished"}))
    found = read_sweep(tmp_path)
    assert [c.folder for c in found.cells] == ["2_dpo", "10_dpo"]
    assert [c.overrides for c in found.cells] == [
        {"optimizer.lr": "0.2"}, {"optimizer.lr": "0.10"},
    ]  # fmt: skip


def test_damaged_files_are_rows_too(sweep):
    (sweep / "0_run" / "summary.json").write_text('{"status": "fini')
    (sweep / "1_run" / "summary.json").unlink()
    assert [c.status for c in write_sweep(sweep).cells[:2]] == ["missing", "missing"]


def test_what_is_no_sweep_is_refused(tmp_path):
    assert not is_sweep(tmp_path)
    with pytest.raises(Refusal, match=r"sweep\.json"):
        write_sweep(tmp_path)
