"""Learning curves within passes, exact where the task is."""

import pytest

from lit_pref.app.preflight import compose_config, composing
from lit_pref.app.run import run_job
from lit_pref.callbacks.curve import Curve
from lit_pref.report import read_metrics
from lit_pref.types import Refusal


def run(folder, *overrides):
    with composing():
        cfg = compose_config(
            [*overrides, "callbacks=curve", "export=false", f"paths.run_dir={folder}"]
        )
    outcome = run_job(cfg, folder)
    assert outcome.status == "finished", outcome.reason
    return read_metrics(folder / "metrics.csv")


def test_an_offline_run_is_measured_within_its_only_round(tmp_path):
    table = run(
        tmp_path, "task=contextual_bandit", "reference=closed_form", "data=offline", "data.reuse=7",
        "objective=ipo", "objective.margin=10", "callbacks.curve.every_n_steps=3", "optimizer.lr=1e-2",
    )  # fmt: skip
    reward = table.points("step", "curve/reward")
    assert [step for step, _ in reward] == [0, 3, 6, 7]
    assert reward[0][1] == pytest.approx(0.039, abs=0.005)
    assert len({value for _, value in reward}) == 4
    margins = dict(table.points("step", "curve/h_margin_clear"))
    assert abs(margins[0]) < 0.2 < margins[7]  # IPO widens it from the first steps on
    assert table.points("step", "samples")[0] == (0, 100)


def test_a_task_without_expectations_is_sampled(tmp_path):
    table = run(
        tmp_path, "task=token_bandit", "data.rounds=2",
        "objective=best_of_n", "callbacks.curve.every_n_steps=2",
    )  # fmt: skip
    assert [step for step, _ in table.points("step", "curve/reward")] == [0, 2]
    assert table.points("step", "curve/kl")[0][1] == 0


def test_refusals():
    with pytest.raises(Refusal, match="at least 1"):
        Curve(every_n_steps=0)
