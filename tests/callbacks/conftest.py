"""Runs in plain Python on a task of few responses."""

import csv
from types import SimpleNamespace

import lightning as L
import pytest
from tests_callbacks_support import FewResponses

from lit_pref.callbacks import Checkpoints, MetricsCSV, RunFiles
from lit_pref.data import OnPolicyDataModule
from lit_pref.sampling import NativeSampler


@pytest.fixture
def fit(tmp_path):
    """``fit(objective, callbacks)`` trains on few responses; returns trainer, module, rows."""

    def run(objective, callbacks, *, data=OnPolicyDataModule, folder=None, ckpt_path=None, **sizes):
        folder = folder or tmp_path / "run"
        task = FewResponses()
        sizes = {"prompts_per_round": 4, "responses_per_prompt": 4, "batch_size": 2, "rounds": 2,
                 **sizes}  # fmt: skip
        source = data(
            task, sampler=NativeSampler(max_new_tokens=2), reward=task.true_reward(), **sizes
        )
        wanted = source.trainer_kwargs()
        wanted["callbacks"] += [*callbacks, RunFiles(folder)]
        trainer = L.Trainer(
            **wanted,
            logger=[MetricsCSV(folder)],
            log_every_n_steps=1,
            accelerator="cpu",
            enable_checkpointing=any(isinstance(c, Checkpoints) for c in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(objective, datamodule=source, ckpt_path=ckpt_path)
        rows = list(csv.DictReader((folder / "metrics.csv").open()))
        return SimpleNamespace(trainer=trainer, module=objective, data=source, rows=rows)

    return run
