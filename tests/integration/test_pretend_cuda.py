"""On a CUDA device that is pretended: nothing is on two devices."""

import json

import pytest
import torch
from pretend_cuda import CUDA, Pretend, PretendTensor
from torch import nn

# ---------------------------------------------------------------- what is pretended

REFUSED = {
    "a sum": lambda there, here: there + here,
    "a sum in place": lambda there, here: here.add_(there),
    "joined": lambda there, here: torch.cat([there, here]),
    "a number of the device for the host": lambda there, here: here * there.sum(),
    "indices of the device for the host": lambda there, here: here[torch.zeros_like(there).long()],
    "a generator of the host": lambda there, here: torch.rand(
        2, device=CUDA, generator=torch.Generator()
    ),
    "numpy": lambda there, here: there.numpy(),
    "read before it arrives": lambda there, here: there.to("cpu", non_blocking=True),
    "pinned where it is not": lambda there, here: there.pin_memory(),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cuda_refuses_is_refused(what):
    with Pretend():
        there = torch.ones(3, device=CUDA)
        with pytest.raises((RuntimeError, TypeError)):
            REFUSED[what](there, torch.ones(3))


def test_the_rest_goes_on_and_waits_are_noted():
    with Pretend() as pretend:
        there = torch.ones(3, device=CUDA, requires_grad=True)
        with pretend.watch() as waits:
            lone = there * torch.tensor(2.0)
            lone.sum().backward()
            moved = torch.ones(3).pin_memory().to(CUDA, non_blocking=True)
            assert waits == []
            moved[torch.tensor([True, False, True])]
            moved[torch.tensor([0])]
            (
                moved.to("cpu"),
                torch.ones(3).to(CUDA),
                float(moved.sum()),
                torch.tensor(1, device=CUDA),
            )
        assert [what for what, _ in waits] == [
            "mask as index", "index of the host", "to the host", "from pageable memory",
            "_local_scalar_dense", "from pageable memory",
        ]  # fmt: skip
        assert isinstance(there.grad, PretendTensor) and there.grad.tolist() == [2.0] * 3
        layer = nn.Linear(2, 2).to(CUDA)
        assert layer.weight.device == CUDA and isinstance(layer.weight, nn.Parameter)


# ---------------------------------------------------------------- whole runs

SMALL = [
    "trainer.accelerator=gpu", "task=text", "model=tiny", "model.forward=packed",
    "sampler.max_new_tokens=5", "callbacks=minimal", "task.validation_prompts=2",
]  # fmt: skip
SAMPLED = [
    "data.prompts_per_round=4", "data.responses_per_prompt=2", "data.batch_size=2",
    "data.rounds=1", "reward=length",
]  # fmt: skip
RUNS = {
    "pairs": ["objective=dpo", *SAMPLED, "data.micro_batch_tokens=60", "sampler.max_rows=4"],
    "critic": ["objective=ppo", "objective.kl_coef=0.1", *SAMPLED, "sampler.temperature=0.7",
               "sampler.top_p=0.9", "model.forward=padded", "model.gradient_checkpointing=true"],
    "coupled": ["objective=kto", *SAMPLED, "model.lora.rank=2", "sampler.precision=bfloat16"],
    "scores": ["objective=reward_model", "data=offline", "data.batch_size=2",
               "task.pairs=docs/examples/pairs.jsonl"],
}  # fmt: skip
BANDIT = ["trainer.accelerator=gpu", "task=contextual_bandit", "objective=dpo", *SAMPLED[:-1],
          "callbacks=minimal"]  # fmt: skip


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_trains_samples_measures_and_exports(job, kind):
    with Pretend():
        done = job(*SMALL, *RUNS[kind])
    assert done.outcome.exit_code == 0, done.summary["reason"]
    assert (done.folder / "export" / "config.json").exists()


def test_a_policy_of_its_own_kind(job):
    with Pretend():
        done = job(*BANDIT)
    assert done.outcome.exit_code == 0, done.summary["reason"]
    assert json.loads((done.folder / "summary.json").read_text())["steps"] == 2
