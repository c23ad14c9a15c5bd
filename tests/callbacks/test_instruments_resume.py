"""A run with every instrument that stops and goes on is bitwise the run that does not."""

import shutil

import lightning as L
import pytest
import torch
from tests_callbacks_support import Reference, policy

from lit_pref.callbacks import (
    AgainstReference,
    Alarms,
    Checkpoints,
    Evaluation,
    GradientParts,
    PairProbe,
)
from lit_pref.callbacks import SampleStatistics as Statistics
from lit_pref.objectives import DPO


def everything():
    return [
        Evaluation(every_n_rounds=1, responses=2),
        Statistics(entropy="distribution", exact_limit=0),
        PairProbe(source="sampled", own=2),
        AgainstReference(responses=2),
        GradientParts(every_n_steps=2),
        Alarms(patience=1),
    ]


class KeepAt(L.Callback):
    """Keeps the folder as it is when an epoch begins: what a killed run would have left."""

    def __init__(self, folder, copy, epoch):
        self.folder, self.copy, self.epoch = folder, copy, epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            shutil.copytree(self.folder, self.copy)


@pytest.mark.parametrize("stop", [1, 2])
def test_metrics_and_counters_go_on(fit, tmp_path, stop):
    def run(folder, **options):
        saves = Checkpoints(folder / "checkpoints")
        keep = KeepAt(tmp_path / "a", tmp_path / "b", stop if folder.name == "a" else -1)
        objective = DPO(policy(), reference=Reference())
        callbacks = [*everything(), saves, keep]
        return fit(objective, callbacks, folder=folder, rounds=3, **options)

    whole = run(tmp_path / "a")
    again = run(tmp_path / "b", ckpt_path=tmp_path / "b" / "checkpoints" / "last.ckpt")
    assert again.rows == whole.rows
    assert again.data.counters == whole.data.counters
    assert (tmp_path / "b" / "validation.jsonl").read_text() == (
        tmp_path / "a" / "validation.jsonl"
    ).read_text()
    probes = [t.callbacks[3] for t in (whole.trainer, again.trainer)]
    assert probes[0].before == probes[1].before and probes[0].groups == probes[1].groups
    for a, b in zip(whole.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(a, b)
