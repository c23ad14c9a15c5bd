"""The log lines of a run without a terminal."""

import logging
from types import SimpleNamespace

from lit_pref.callbacks.progress import RunProgress


def test_a_reward_model_says_its_accuracy(caplog):
    data = SimpleNamespace(total_steps=4)
    trainer = SimpleNamespace(is_global_zero=True, global_step=4, datamodule=data)
    with caplog.at_level(logging.INFO):
        RunProgress().on_evaluation(trainer, {"val/accuracy": 0.75, "val/loss": 0.6}, [])
    assert "step 4/4  round 0  val_accuracy 0.75" in caplog.text
