"""The log lines of a run without a terminal."""

import logging
from types import SimpleNamespace

import pytest
from tests_callbacks_support import Reference, policy

from lit_pref.callbacks import Evaluation
from lit_pref.callbacks.progress import RunProgress
from lit_pref.objectives import DPO


def test_a_reward_model_says_its_accuracy(caplog):
    data = SimpleNamespace(total_steps=4)
    trainer = SimpleNamespace(is_global_zero=True, global_step=4, datamodule=data)
    with caplog.at_level(logging.INFO):
        RunProgress().on_evaluation(trainer, {"val/accuracy": 0.75, "val/loss": 0.6}, [])
    assert "step 4/4  round 0  val_accuracy 0.75" in caplog.text


def test_making_a_round_is_told_of_now_and_then(caplog, monkeypatch):
    at = [100.0]
    monkeypatch.setattr("lit_pref.callbacks.progress.time.monotonic", lambda: at[0])
    shown = RunProgress(every_seconds=10)
    shown.on_pass_start(3, 0)
    with caplog.at_level(logging.INFO):
        for second, stage, done in [
            (0, "generating", 1), (4, "generating", 2), (11, "annotating", 3),
            (12, "annotating", 4), (22, "annotating", 8),
        ]:  # fmt: skip
            at[0] = 100.0 + second
            shown.on_progress(stage, done, 8)
    assert [r.getMessage() for r in caplog.records] == [
        "round 3: annotating, 3 of 8 responses",
        "round 3: annotating, 8 of 8 responses",
    ]


@pytest.mark.parametrize(
    ("every", "rounds", "when"),
    [(1, 2, "after every round, "), (2, 2, "after every 2 rounds, "), (3, 1, "after every 3 passes, "),
     (0, 2, "")],
)  # fmt: skip
def test_the_plan_and_what_validates_it_come_first(fit, caplog, every, rounds, when):
    with caplog.at_level(logging.INFO, logger="lit_pref"):
        fit(
            DPO(policy(), reference=Reference()),
            [RunProgress(), Evaluation(every_n_rounds=every)],
            rounds=rounds,
        )
    lines = [r.getMessage() for r in caplog.records if r.name == "lit_pref.callbacks.progress"]
    assert lines[0] == f"training: {2 * rounds} steps = {rounds} rounds x 1 passes x 2 batches"
    assert lines[1].startswith("validation: val_reward and kl on 4 prompts, ")
    wanted = f"responses to each: 1, drawn alike each time; before the first step, {when}at the end"
    assert wanted in lines[1]
    assert lines[2].startswith("step 0/")
