"""Criteria, cells and pages of the paper's figures, and quick versions of their verdicts."""

import json
import math
import subprocess
from pathlib import Path

import pytest
import yaml

from lit_pref.app.paper import plots
from lit_pref.app.paper.bandits import FIGURES, spearman
from lit_pref.app.paper.cells import Cell, Curves, Run, cells_of, run_cells, settings_digest
from lit_pref.app.paper.criteria import Check, Criterion, interval, verdict
from lit_pref.app.paper.exact import FIGURES as EXACT
from lit_pref.app.paper.flags import METHODS, one_run
from lit_pref.app.paper.reproduce import main, reproduce
from lit_pref.app.preflight import compose_config, composing
from lit_pref.errors import Refusal

ROOT = Path(__file__).parents[2]
CRITERIA = ROOT / "docs" / "paper" / "criteria"
NAMES = sorted(p.stem for p in CRITERIA.glob("*.yaml"))


def criterion(name):
    return Criterion.read(CRITERIA / f"{name}.yaml")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cells")


def quick(name, cache, folder):
    return reproduce(criterion(name), out=folder, cache=cache, quick=True)


# --------------------------------------------------------------------------- cells


GRIDS = [n for n in NAMES if criterion(n).grid and "experiment" in criterion(n).grid]


@pytest.mark.parametrize("name", GRIDS)
def test_settings_name_a_cell_wherever_its_files_are(name, tmp_path):
    cells = cells_of(criterion(name).grid, [1])
    first, *more = ([*cells[0].overrides, f"paths.run_dir={place}", f"paths.cache_dir={place}"]
                    for place in (tmp_path / "a", tmp_path / "b"))  # fmt: skip
    other = [*first, "optimizer.clip_norm=7"]
    with composing():
        found = [settings_digest(compose_config(o)) for o in (first, *more, other)]
    assert found[0] == found[1] != found[2]


# --------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("values", "word"),
    [((1, 1, 1), "holds"), ((1, 1, 0), "holds_partly"), ((0, 1, 0), "holds_partly"),
     ((0, 0, 1), "does_not_hold"), ((0, 0, 0), "does_not_hold")],
)  # fmt: skip
def test_verdict(values, word):
    checks = [
        Check("a", "a", at_least=0.5, central=True),
        Check("b", "b", at_least=0.5, central=True),
        Check("c", "c", at_least=0.5),
    ]
    numbers = {k: [v] for k, v in zip("abc", values, strict=True)}
    assert verdict(checks, numbers)[0] == word


def test_a_check_compares_the_mean_and_never_passes_on_nan():
    check = Check("a", "a", at_least=0.5, at_most=0.7, slack=0.1)
    assert check.holds(0.5) and check.holds(0.7) and not check.holds(0.71) and not check.holds(0.49)
    assert check.holds(0.41, quick=True) and not check.holds(math.nan) and not check.holds(math.inf)
    _, (outcome,) = verdict([check], {"a": [0.3, 0.9]})
    assert outcome.mean == pytest.approx(0.6) and outcome.holds


def test_interval_is_students():
    mean, low, high = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (
        mean == 3
        and high - mean == pytest.approx(2.776 * math.sqrt(2.5 / 5))
        and mean - low == pytest.approx(high - mean)
    )
    assert interval([1.0])[1] is None and interval([1.0, math.inf])[1] is None


def test_spearman():
    assert spearman([1, 2, 3, 4], [9, 7, 5, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    assert spearman([1, 2], [3, 3]) == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_criterion_can_be_judged(name):
    made = criterion(name)
    assert made.checks and made.origin and any(c.central for c in made.checks)
    assert all(c.at_least is not None or c.at_most is not None for c in made.checks)
    if made.grid is None:
        assert name in EXACT
    else:
        assert made.verdict and made.tuning and not set(made.verdict) & set(made.tuning)
        assert (ROOT / "configs" / "experiment" / f"{made.grid['experiment']}.yaml").exists()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs" / "paper").glob("*.json")), ids=lambda p: p.stem
)
def test_written_verdicts_follow_from_their_criterion(path):
    """The JSON is what the committed criterion says of its values."""
    saved = json.loads(path.read_text())
    made = criterion(saved["criterion"]["file"].split("/")[-1].removesuffix(".yaml"))
    assert saved["criterion"]["sha256"] == made.digest(), "the criterion changed after the run"
    numbers = {c["value"]: [float(v) for v in c["by_seed"]] for c in saved["checks"]}
    assert verdict(made.checks, numbers)[0] == saved["verdict"]
    assert saved["criterion"]["commit"], "run from an uncommitted criterion"
    assert not set(saved["seeds"]["verdict"]) & set(made.tuning)
    assert path.with_suffix(".md").exists() and path.with_suffix(".png").exists()


def test_an_uncommitted_criterion_and_tuning_seeds_are_refused(tmp_path):
    path = tmp_path / "fig12.yaml"
    path.write_text((CRITERIA / "fig12.yaml").read_text())
    made = Criterion.read(path)
    assert made.commit() is None
    with pytest.raises(Refusal, match="not committed"):
        reproduce(made, out=tmp_path, cache=tmp_path)
    with pytest.raises(Refusal, match="used for tuning"):
        reproduce(made, out=tmp_path, cache=tmp_path, seeds=made.tuning, quick=True)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    assert len(made.commit()) == 40
    path.write_text(path.read_text() + "\n")
    assert made.commit() is None
    overlapping = yaml.safe_load(path.read_text()) | {"seeds": {"tuning": [1], "verdict": [1, 2]}}
    path.write_text(yaml.safe_dump(overlapping))
    with pytest.raises(Refusal, match="both tuning and verdict"):
        Criterion.read(path)


# --------------------------------------------------------------------------- cells


def test_a_grid_is_every_combination_without_what_is_skipped():
    grid = {
        "experiment": "e",
        "axes": {"a": {"x": ["k=1"], "y": []}, "b": {1: ["j=1"], 2: ["j=2"]}},
    }
    assert len(cells_of(grid, [1, 2])) == 8
    cells = cells_of({**grid, "skip": [{"a": "y", "b": 2}]}, [7], ["z=1"])
    assert cells[0].overrides == ("experiment=e", "k=1", "j=1", "z=1", "seed=7")
    assert dict(cells[-1].labels) == {"a": "y", "b": "1"} and len(cells) == 3


TINY = {
    "experiment": "fig12",
    "axes": {
        "method": {
            "ipo": ["data.reuse=3", "task.train_prompts=4", "callbacks.curve.every_n_steps=2"]
        }
    },
}


def test_finished_cells_are_not_run_again(cache, tmp_path):
    cells = cells_of(TINY, [1])
    first = run_cells(cells, tmp_path).runs[0]
    assert first.columns["step"] == [0, 2, 3]
    assert first.counters == {"steps": 3, "samples": 40, "reward_queries": 40, "eval_queries": 0}
    (kept,) = tmp_path.glob("*/cell.json")
    saved = json.loads(kept.read_text())
    saved["columns"]["curve/reward"][-1] = 123.0
    kept.write_text(json.dumps(saved))
    assert run_cells(cells, tmp_path).at("curve/reward") == [123.0]
    kept.unlink()  # interrupted before the end
    again = run_cells(cells, tmp_path).runs[0]
    seconds = first.columns.pop("seconds")
    assert 0 < seconds[0] < seconds[1] < seconds[2] and len(again.columns.pop("seconds")) == 3
    assert again.columns == first.columns


def test_the_command_lists_and_refuses(capsys, tmp_path):
    folders = {"criteria": CRITERIA, "docs": tmp_path, "cache": tmp_path}
    assert main(["--list"], **folders) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == set(NAMES)
    assert main(["fig99"], **folders) == 2
    assert "fig12" in capsys.readouterr().err
    assert main(["fig12", "--set", "optimizer.lr=1"], **folders) == 2
    assert "--out" in capsys.readouterr().err


def test_all_figures_of_a_folder_go_elsewhere(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    criteria, out = tmp_path / "criteria", tmp_path / "out"
    criteria.mkdir()
    for name in ("fig02", "coverage"):
        (criteria / f"{name}.yaml").write_text((CRITERIA / f"{name}.yaml").read_text())
    folders = {"criteria": criteria, "docs": tmp_path, "cache": tmp_path / "cells"}
    assert main(["all", "--out", str(out), "--jobs", "2", "--draft"], **folders) == 0
    assert {p.name for p in out.glob("*.png")} == {"fig02.png", "coverage.png"}
    assert capsys.readouterr().out.count(": holds") == 2 and not list(tmp_path.glob("*.md"))


def test_labels_below_neighbouring_panels_do_not_meet(tmp_path):
    pytest.importorskip("matplotlib")
    columns = {"step": [0.0, 200.0], "samples": [1000.0] * 2, "reward_queries": [1000.0] * 2}
    columns["curve/reward"] = [0.1, 0.9]
    cell = Cell(labels=(("method", "ipo"),), seed=1, overrides=())
    curves = Curves([Run(cell=cell, columns=columns, counters={}, seconds=1.0)])
    panels = [("one", {}), ("two", {})]
    with plots.figure(tmp_path / "f.png", 2, 2, title="t", size=2.6) as axes:
        plots.curve_rows(axes, curves, panels=panels, lines=[("IPO", {"method": "ipo"})])
        drawing = axes[0][0].figure
        drawing.canvas.draw()
        for row in axes:
            left, right = (a.xaxis.label.get_window_extent() for a in row)
            assert 0 <= left.x0 < left.x1 < right.x0 < right.x1 <= drawing.bbox.x1


def test_few_seeds_are_drawn_one_by_one(tmp_path):
    pytest.importorskip("matplotlib")
    with plots.figure(tmp_path / "f.png", 1, 1, title="t") as axes:
        plots.plot_seeds(axes[0][0], [64.0, 512.0], [[1.0, 4.0], [3.0, 8.0]], "PPO", 0)
        mean, *seeds = axes[0][0].lines
        assert mean.get_ydata().tolist() == [2.0, 6.0]  # by hand: (1 + 3) / 2, (4 + 8) / 2
        assert [line.get_ydata().tolist() for line in seeds] == [[1.0, 4.0], [3.0, 8.0]]
        assert all(line.get_linestyle() == "None" for line in seeds)
        assert not axes[0][0].collections  # no band


# --------------------------------------------------------------------------- quick verdicts


@pytest.mark.parametrize("name", ["fig02", "coverage", "lemmas", "theorem", "fig20"])
def test_exact_figures(name, cache, tmp_path):
    pytest.importorskip("matplotlib")
    assert quick(name, cache, tmp_path)["verdict"] == "holds"
    page = (tmp_path / f"{name}.md").read_text()
    assert "Verdict: **holds**" in page and (tmp_path / f"{name}.png").stat().st_size > 5000


def expected(name):
    """The full verdict, where it was run: the quick version must say the same."""
    path = ROOT / "docs" / "paper" / f"{name}.json"
    return json.loads(path.read_text())["verdict"] if path.exists() else None


def check_quick(name, cache, tmp_path, seeds=None):
    pytest.importorskip("matplotlib")
    result = reproduce(criterion(name), out=tmp_path, cache=cache, seeds=seeds, quick=True)
    full = expected(name)
    assert full in (None, result["verdict"])
    assert result["cost"]["runs"] > 0 and (tmp_path / f"{name}.png").exists()


def test_quick_verdict_of_figure_12(cache, tmp_path):
    check_quick("fig12", cache, tmp_path, seeds=[1])


@pytest.mark.parametrize(("name", "strict"), [("Best-of-N", True), ("DPO", False)])
def test_flags_and_counters_of_one_step(name, strict, tmp_path):
    overrides, (_, _, negative) = METHODS[name]
    seen = one_run(overrides, 1, tmp_path)
    assert seen["flag"] == (seen["positive"] > 1e-9) == negative
    assert seen["steps"] == 1 and seen["counters"]["reward_queries"] == 100
    assert not strict or seen["gap"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["table1", "algorithm1"])
def test_verdicts_of_the_probes(name, cache, tmp_path):
    assert quick(name, cache, tmp_path)["verdict"] == "holds"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(FIGURES) - {"fig12"}))
def test_quick_verdicts_of_the_other_figures(name, cache, tmp_path):
    check_quick(name, cache, tmp_path)
