"""Numbers and pictures of the figures on length tasks and the gold reward, on curves made by hand."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_pref.app.paper.cells import Cell, Curves, Run, cells_of, run_cells, settings_digest
from lit_pref.app.paper.criteria import Criterion
from lit_pref.app.paper.gold import FIGURES as GOLD
from lit_pref.app.paper.jobs import parallel
from lit_pref.app.paper.lengths import FIGURES as LENGTHS
from lit_pref.app.paper.reproduce import reproduce
from lit_pref.app.preflight import compose_config, composing

ROOT = Path(__file__).parents[2]
CRITERIA = ROOT / "docs" / "paper" / "criteria"
FIGURES = LENGTHS | GOLD


def run(values, *, seed=1, samples=64, step=8, columns=None, **labels):
    """A run measured every ``step`` steps that drew ``samples`` responses a step."""
    steps = [float(step * n) for n in range(len(values))]
    made = {
        "step": steps, "samples": [s * samples for s in steps],
        "reward_queries": [s * samples for s in steps], "seconds": [s / 10 for s in steps],
        "curve/reward": [float(v) for v in values], "curve/kl": [s / 100 for s in steps],
    }  # fmt: skip
    cell = Cell(labels=tuple(labels.items()), overrides=(), seed=seed)
    return Run(cell=cell, columns=made | (columns or {}), counters={}, seconds=1.0)


def numbers(name, *runs):
    return FIGURES[name].numbers(Curves(list(runs)))


SIZES = ("64", "128", "256", "512")


def by_size(task, ends, start=-20, **labels):
    return [
        run([start, (start + end) / 2, end], task=task, size=b, **labels)
        for b, end in zip(SIZES, ends, strict=True)
    ]


def test_lengths_in_the_order_of_the_rounds():
    runs = by_size("min", (-2, -3, -4, -5)) + by_size("skew", (-5, -3, -4, -6))
    out = numbers("fig05_07", *runs)
    assert out["min_spearman"] == [1] and out["min_length_256"] == [4]
    assert out["skew_spearman"] == [pytest.approx(0.4)]  # ranks 3 1 2 4 against 1 2 3 4
    assert out["min_steps_to_half_64"] == [16] and out["min_steps_to_half_512"] == [16]


def test_range_of_mode_against_that_of_min_in_units_of_their_starts():
    mode = by_size("mode", (-1, -1.5, -1.25, -1.1), start=-5)
    out = numbers("fig06", *by_size("min", (-2, -6, -10, -12)), *mode)
    assert out["min_range"] == [0.5] and out["mode_range"] == [0.1]
    assert out["range_ratio"] == [pytest.approx(0.2)]
    still = numbers("fig06", *by_size("min", (-1, -1, -1, -1)), *mode)
    assert math.isinf(still["range_ratio"][0])


def test_slopes_are_over_the_doublings_of_a_round():
    runs = []
    for method in ("ppo", "rwr"):
        ends_of = {"min": (-2, -4, -6, -8), "mode": (-1, -1, -1, -1), "skew": (-8, -6, -4, -2)}
        for task, ends in ends_of.items():
            runs += by_size(task, ends, method=method)
    out = numbers("fig08", *runs)
    assert out["ppo_min_slope"] == [pytest.approx(0.1)]  # 2 of 20 tokens a doubling
    assert out["rwr_skew_slope"] == [pytest.approx(-0.1)]
    assert out["ppo_mode_over_min"] == [0]


def test_gold_rewards_fall_with_the_round():
    runs = []
    for seed, shift in ((1, 0.0), (2, 0.1)):
        for b, end in (("64", 1.0), ("128", 0.8), ("256", 0.5)):
            for m in ("rwr", "reinforce"):
                end_of = end if m == "rwr" else 1.5 - end
                runs.append(run([0, end_of + shift], seed=seed, method=m, size=b))
    out = numbers("fig09", *runs)
    assert out["rwr_least_drop"] == [pytest.approx(0.2)]
    # means 1.05 and 0.55, standard error of each 0.05, of their difference 0.05 sqrt 2
    assert out["rwr_apart"] == [pytest.approx(0.5 / (0.05 * math.sqrt(2)))]
    assert out["reinforce_least_drop"] == [pytest.approx(-0.3)]
    assert out["least_gain"] == [pytest.approx(0.55)]


def test_passes_are_compared_at_equal_steps_and_at_equal_samples():
    def passes(method, t, values, clip):
        clipped = {"clip_ratio/region": [math.nan] + [clip] * (len(values) - 1)}
        return run(values, samples=64 / t, method=method, passes=str(t), columns=clipped)

    runs = [
        passes("ppo", 1, [-20, -10, -4, -2], 0.0), passes("ppo", 2, [-20, -10, -4, -3], 0.1),
        passes("ppo", 4, [-20, -10, -4, -2], 0.2), passes("ppo", 8, [-20, -10, -4, -2], 0.3),
        # as many rounds, hence samples, for every T: T times the steps
        passes("best_of_n", 1, [-20, -15], 0.0), passes("best_of_n", 2, [-20, -14, -8], 0.0),
        passes("best_of_n", 4, [-20, -16, -9, -7, -6], 0.0),
        passes("best_of_n", 8, [-20, -17] + [-9] * 7, 0.0),
    ]  # fmt: skip
    out = numbers("fig11", *runs)
    assert out["ppo_spread"] == [0.05] and out["ppo_clip_trend"] == [1]
    # 192 samples (T = 8 at its end): T = 1 is at step 0 of 8 (512 samples would be too many)
    assert out["ppo_equal_samples_1"] == [20] and out["ppo_equal_samples_4"] == [10]
    assert out["best_of_n_reuse_gain"] == [9] and out["best_of_n_loss_of_8"] == [3]


def test_negative_gradients_against_the_better_of_the_others():
    ends = {"best_of_n": -18, "best_of_n_negative": -10, "dpo": -4, "pref_ft": -16}
    out = numbers("fig13", *(run([-20, v], task="min", method=m) for m, v in ends.items()))
    assert out["min_dpo_shorter"] == [0.6] and out["min_best_of_n_negative_shorter"] == [0.3]


def test_orders_of_figure_19():
    curves = {
        "on_dpo": [-20, -5, -1, -1], "off_dpo": [-20, -10, -5, -2], "ppo": [-20, -9, -6, -3],
        "rwr": [-20, -15, -12, -9],
    }  # fmt: skip
    runs = [run(v, task=t, method=m) for t in ("min", "mode", "skew") for m, v in curves.items()]
    out = numbers("fig19", *runs)
    assert out["min_off_dpo_later"] == [8] and out["min_rwr_later"] == [math.inf]
    assert out["skew_off_dpo_longer"] == [1] and out["skew_rwr_longer_than_ppo"] == [6]
    assert out["mode_spread"] == [0.4]
    swapped = [r for r in runs if ("method", "off_dpo") not in r.cell.labels]
    swapped += [run([-20, -1, -1, -1], task=t, method="off_dpo") for t in ("min", "mode", "skew")]
    assert numbers("fig19", *swapped)["min_off_dpo_later"] == [0]


def test_time_to_nine_tenths_of_the_best():
    runs = [
        run([-21, -3, -3], task="min", method="on_dpo"),
        run([-21, -9, -1], task="min", method="ppo"),
    ]
    out = numbers("wall_clock", *runs)
    assert out["goal_length"] == [3]  # 21 - 0.9 x 20
    assert out["on_dpo_seconds"] == [0.8] and out["ppo_seconds"] == [1.6]
    assert out["time_ratio"] == [0.5]
    never = numbers("wall_clock", run([-21, -4, -4], task="min", method="on_dpo"), runs[1])
    assert math.isinf(never["time_ratio"][0])


def test_gains_over_the_start():
    out = numbers(
        "fig14",
        run([-0.5, 0.3], method="untrained"), run([0.2, 0.3], method="pref_ft"),
        run([0.2, 1.2], method="dpo"),
    )  # fmt: skip
    assert out["dpo_minus_pref_ft"] == [pytest.approx(0.9)]
    assert out["pref_ft_not_worse"] == [pytest.approx(0.2)]
    assert out["untrained_gain"] == [pytest.approx(-0.7)]


def test_log_ratios_of_two_data_sets():
    def pairs(kind, method, chosen, rejected):
        probe = {"probe/chosen_change": [0.0, chosen], "probe/rejected_change": [0.0, rejected]}
        return run([0, 1], pairs=kind, method=method, columns=probe)

    out = numbers(
        "fig17",
        pairs("one", "pref_ft", 0.5, 0.3), pairs("one", "dpo", -1, -3),
        pairs("two", "pref_ft", 0.5, -0.1), pairs("two", "dpo", 2, -4),
    )  # fmt: skip
    assert out["one_pref_ft_least_rise"] == [0.3] and out["two_pref_ft_least_rise"] == [-0.1]
    assert out["one_gap_ratio"] == [pytest.approx(10)] and out["one_dpo_largest"] == [-1]
    assert out["two_dpo_chosen"] == [2] and out["two_dpo_rejected"] == [-4]
    reversed_gap = [pairs("one", "pref_ft", 0.1, 0.3), pairs("one", "dpo", -1, -3)]
    assert numbers("fig17", *reversed_gap)["one_gap_ratio"] == [math.inf]


# --------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_every_grid_gives_all_numbers_and_a_picture(name, tmp_path):
    pytest.importorskip("matplotlib")
    made = Criterion.read(CRITERIA / f"{name}.yaml")
    more = {
        "clip_ratio/region": [math.nan, 0.1, 0.2],
        "probe/chosen_change": [0.0, 0.1, 0.2],
        "probe/rejected_change": [0.0, -0.1, -0.1],
    }
    runs = []
    for n, cell in enumerate(cells_of(made.grid, (1, 2))):
        offline = "data=offline" in cell.overrides or made.grid["experiment"] in ("fig13", "fig17")
        one = run([-20, -9, -2 - n / 7], samples=0 if offline else 64, step=160, columns=more)
        runs.append(Run(cell=cell, columns=one.columns, counters={}, seconds=1.0))
    out = FIGURES[name].numbers(Curves(runs))
    assert {c.value for c in made.checks} <= set(out)
    FIGURES[name].draw(Curves(runs), tmp_path / "f.png", made.title)
    assert (tmp_path / "f.png").stat().st_size > 5000


def test_figures_share_their_runs():
    """What the criterion files say of shared runs: equal settings have one digest."""
    digests = {}
    with composing():
        for name, labels in (
            ("fig05_07", {"task": "min", "size": "256"}), ("fig06", {"task": "min", "size": "256"}),
            ("fig11", {"method": "ppo", "passes": "1"}), ("fig13", {"task": "min", "method": "dpo"}),
            ("fig19", {"task": "min", "method": "off_dpo"}), ("fig14", {"method": "dpo"}),
            ("fig17", {"pairs": "one", "method": "dpo"}),
            ("wall_clock", {"task": "min", "method": "ppo"}),
            ("fig05_07", {"task": "min", "size": "64"}),
        ):  # fmt: skip
            grid = Criterion.read(CRITERIA / f"{name}.yaml").grid
            (cell,) = (c for c in cells_of(grid, [1]) if dict(c.labels) == labels)
            key = name + "".join(labels.values())
            digests[key] = settings_digest(compose_config([*cell.overrides, "paths.run_dir=."]))
    assert digests["fig05_07min256"] == digests["fig06min256"] == digests["fig11ppo1"]
    assert digests["fig13mindpo"] == digests["fig19minoff_dpo"]
    assert digests["fig14dpo"] == digests["fig17onedpo"]
    assert digests["wall_clockminppo"] == digests["fig05_07min64"]
    assert len(set(digests.values())) == 4


# --------------------------------------------------------------------------- several processes


def slow_square(x):
    if x < 0:
        raise ValueError("negative")
    if x == 99:
        time.sleep(60)
    return x * x, os.getpid()


def test_results_come_in_order_from_other_processes():
    made = list(parallel(slow_square, [1, 2, 3], jobs=2))
    assert [r for r, _ in made] == [1, 4, 9] and os.getpid() not in {p for _, p in made}
    assert list(parallel(slow_square, [3], jobs=2)) == [(9, os.getpid())]


def test_an_error_ends_the_others_at_once():
    began = time.monotonic()
    with pytest.raises(ValueError, match="negative"):
        list(parallel(slow_square, [-1, 99], jobs=2))
    assert time.monotonic() - began < 40


SCRIPT = """
import os, sys, time
from lit_pref.app.paper.jobs import parallel

def wait(n):
    open(f"{sys.argv[1]}/{os.getpid()}", "w").close()
    time.sleep(60)

if __name__ == "__main__":
    list(parallel(wait, [1, 2, 3], jobs=2))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_stays_behind(how, tmp_path):
    script, told = tmp_path / "s.py", tmp_path / "told"
    script.write_text(SCRIPT.replace("sys.argv[1]", repr(str(told))))
    told.mkdir()
    parent = subprocess.Popen(
        [sys.executable, str(script)], stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in the background
    )  # fmt: skip
    wait_for(lambda: len(list(told.iterdir())) == 2)
    parent.send_signal(how)
    assert parent.wait(20) != 0
    wait_for(lambda: not any(alive(int(p.name)) for p in told.iterdir()))


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


# --------------------------------------------------------------------------- real runs


@pytest.mark.slow
def test_a_length_figure_from_preparation_to_page(tmp_path, monkeypatch):
    """A few steps of figure 19 on Min Length; a second call runs nothing again."""
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))
    short = ["data.rounds=8", "task.train_prompts=300", "task.validation_prompts=16"]
    made = Criterion.read(CRITERIA / "wall_clock.yaml")
    result = reproduce(made, out=tmp_path, cache=tmp_path / "c", quick=True, jobs=2, extra=short)
    assert result["cost"]["runs"] == len(made.quick) * 2
    assert result["verdict"] in ("holds", "does_not_hold")
    assert "processor time" in (tmp_path / "wall_clock.md").read_text()
    cells = sorted((tmp_path / "c").glob("*/cell.json"))
    before = [p.stat().st_mtime_ns for p in cells]
    again = reproduce(made, out=tmp_path, cache=tmp_path / "c", quick=True, extra=short)
    assert [p.stat().st_mtime_ns for p in cells] == before
    assert again["checks"] == result["checks"]
    saved = json.loads(cells[0].read_text())["columns"]
    assert saved["step"] == [0, 8] and saved["seconds"][1] > saved["seconds"][0]


@pytest.mark.slow
def test_a_cell_of_figure_17_has_log_ratios(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))
    grid = Criterion.read(CRITERIA / "fig17.yaml").grid
    short = ["data.rounds=16", "task.train_prompts=400", "task.validation_prompts=16"]
    cells = [c for c in cells_of(grid, [1], short) if ("pairs", "one") in c.labels]
    for made in run_cells(cells, tmp_path / "c").runs:
        assert made.columns["step"] == [0, 16]
        assert made.columns["probe/chosen_change"][0] == pytest.approx(0, abs=1e-4)
        assert made.columns["probe/chosen_change"][1] != 0
