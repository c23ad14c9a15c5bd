"""Between two rows of metrics.csv a step asks the device for nothing: the host can run ahead."""

import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_pref.objectives.base import ObjectiveModule
from lit_pref.objectives.guard import StepGuard

# sizes that depend on contents, and contents as numbers of the host
ASKS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2"}
SMALL = [
    "task=text", "model=tiny", "data.prompts_per_round=4", "data.responses_per_prompt=2",
    "data.batch_size=2", "sampler.max_new_tokens=6", "callbacks=minimal", "export=false",
    "data.rounds=1", "reward=length", "model.forward=packed",
]  # fmt: skip


class Watch(TorchDispatchMode):
    """Notes operations for whose result the host would have to wait."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if name in ASKS or masks:
            self.note(name)
        return func(*args, **(kwargs or {}))

    def note(self, name):
        ours = [f for f in traceback.extract_stack() if "lit_pref/" in f.filename]
        last = ours[-1] if ours else None
        self.found.append(f"{name} at {last.filename}:{last.lineno}" if last else name)


OBJECTIVES = ["dpo", "ipo", "kto", "orpo", "grpo", "ppo", "reinforce", "best_of_n", "rwr"]


MANY = ["data.micro_batch_tokens=100"]
"""Several micro-batches in a step."""


@pytest.mark.parametrize(
    ("objective", "more"),
    [*((name, []) for name in OBJECTIVES), ("dpo", MANY), ("grpo", MANY), ("bco_unpaired", MANY)],
)
def test_a_step_between_two_rows_waits_for_nothing(job, monkeypatch, objective, more):
    """Packed rows; of padded ones transformers itself asks whether they are packed."""
    watch, steps = Watch(), []
    run = ObjectiveModule.training_step

    def watched(self, batch, batch_idx):
        with watch, monkeypatch.context() as patch:
            for name in ("tolist", "numpy", "cpu"):
                real = getattr(torch.Tensor, name)

                def noted(tensor, *args, real=real, name=name, **kwargs):
                    watch.note(name)
                    return real(tensor, *args, **kwargs)

                patch.setattr(torch.Tensor, name, noted)
            patch.setattr(torch, "tensor", made)
            run(self, batch, batch_idx)
        steps.append(batch_idx)

    make = torch.tensor

    def made(*args, **kwargs):
        where = kwargs.get("device")  # a GPU would be waited for; the host is named
        if where is not None and not isinstance(where, str):
            watch.note("torch.tensor on a device")
        return make(*args, **kwargs)

    monkeypatch.setattr(ObjectiveModule, "training_step", watched)
    monkeypatch.setattr(ObjectiveModule, "log_window", lambda self: None)
    monkeypatch.setattr(StepGuard, "_ahead", lambda self, norm: True)
    done = job(f"objective={objective}", "trainer.log_every_n_steps=1000", *SMALL, *more)
    assert done.outcome.exit_code == 0, done.summary["reason"]
    assert len(steps) == 2
    assert watch.found == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_torch_sees_no_wait_on_a_gpu(job, monkeypatch, objective):
    """The same by torch's own detector, which knows waits that are no operation."""
    steps = []
    run = ObjectiveModule.training_step

    def watched(self, batch, batch_idx):
        steps.append(batch_idx)
        if len(steps) > 1:  # the first compiles, and makes what is made at first use
            torch.cuda.set_sync_debug_mode("error")
        try:
            run(self, batch, batch_idx)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(ObjectiveModule, "training_step", watched)
    monkeypatch.setattr(ObjectiveModule, "log_window", lambda self: None)
    words = ["trainer.accelerator=gpu", "trainer.log_every_n_steps=1000", "data.rounds=2"]
    done = job(f"objective={objective}", *SMALL, *words)
    assert done.outcome.exit_code == 0, done.summary["reason"]
    assert len(steps) == 4
