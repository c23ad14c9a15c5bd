"""On a CUDA device that is pretended: nothing is on two devices, and steps wait for nothing."""

import json
import math
from types import SimpleNamespace

import crash_runner as crash
import pretend_cuda
import pytest
import torch
from pretend_cuda import CUDA, Pretend, PretendTensor
from torch import nn

from lit_pref.app.objectives import declarations
from lit_pref.callbacks.signals import StopSignals
from lit_pref.engine.decode import _cumulated, decode
from lit_pref.functional.rng import uniforms
from lit_pref.objectives import step
from lit_pref.policies.causal_lm import HFPolicy
from lit_pref.policies.models import tiny
from lit_pref.policies.reference import FrozenReference
from lit_pref.testing.batches import (
    StandInTrainer,
    fill_sampled,
    gradients,
    make_batch,
    make_round,
)
from lit_pref.testing.tiny import TinyPolicy, tiny_groups

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


# ---------------------------------------------------------------- one step of each objective

MORE = {
    "aot": {"compare": "responses"},
    "dpo": {"nll_coef": 0.1, "weighting": "wpo", "pairs": "all"},
    "grpo": {"kl_coef": 0.1, "kl_in": "loss", "entropy_coef": 0.1},
    "ppo": {"kl_coef": 0.1},
    "reinforce": {"kl_coef": 0.1, "kl_in": "reward_to_go", "baseline": "batch_mean"},
}
"""Options that have more to do."""


def stepped(kind, options, device):
    """The gradient of a step in several micro-batches, from the notes on."""
    module = kind(TinyPolicy(), **options, reference=FrozenReference())
    module.trainer = StandInTrainer()
    module.configure_model()
    groups = tiny_groups(groups=6, responses=4)
    fill_sampled(module, groups)
    module.to(device)
    module.on_fit_start()
    round = make_round(module, groups)
    batch = make_batch(round, micro_batch_tokens=60).to(device)
    return module, batch


STEPS = {d.name: (d.kind, MORE.get(d.name, {})) for d in declarations()}
STEPS["dpo by position"] = STEPS["dpo"][0], {"reduction": "position"}
STEPS["dpo by length"] = STEPS["dpo"][0], {"ld_alpha": 0.5}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_on_one_device(name):
    kind, options = STEPS[name]
    module, batch = stepped(kind, options, torch.device("cpu"))
    right = gradients(module, batch)
    with Pretend() as pretend:
        module, batch = stepped(kind, options, CUDA)
        with pretend.watch() as waits:
            found = gradients(module, batch)
        assert waits == []
        assert found.device == CUDA
        torch.testing.assert_close(found.to("cpu"), right)
        values = module.window.flush()
    assert math.isfinite(values["loss"])


def test_processes_agree_by_numbers_on_the_device(monkeypatch):
    """NCCL has no way between processes for tensors of the host."""
    monkeypatch.setattr(step, "is_sharded", lambda policy: True)
    with Pretend():
        module, _ = stepped(*STEPS["dpo"], CUDA)
        module.trainer = StandInTrainer(world_size=2)
        assert step._passes(module, 3) == 3
    assert [sent.device for sent in module.trainer.sent] == [CUDA]


# ---------------------------------------------------------------- several processes


def test_what_nccl_refuses_is_refused(tmp_path):
    begin = {"init_method": f"file://{tmp_path}/meet", "rank": 0, "world_size": 1}
    torch.distributed.init_process_group("gloo", **begin)
    try:
        with Pretend():
            there = torch.ones(3, device=CUDA)
            torch.distributed.all_reduce(there)
            assert there.tolist() == [1.0] * 3
            with pytest.raises(RuntimeError, match="No backend type"):
                torch.distributed.all_reduce(torch.ones(3))
            with pytest.raises(RuntimeError, match="cuda:1"):  # another process's
                torch.ones(3, device="cuda:1")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_with_a_gpu_each(tmp_path, session_cache):
    """Every step of a run: sampling, rewards, notes, steps, logs, checkpoints, evaluation."""
    run = [*SMALL, *PAIRS, "data.batch_size=4", "data.rounds=2", "strategy=ddp"]
    run += ["trainer.devices=2", "trainer.log_every_n_steps=1", "export=true"]
    assert crash.start_two(pretend_cuda.train, run, tmp_path / "two") == [0, 0]
    steps = (tmp_path / "two" / "metrics.csv").read_text().splitlines()
    assert len(steps) >= 3
    assert (tmp_path / "two" / "export" / "model.safetensors").exists()


def test_processes_agree_on_a_signal_a_step_later(monkeypatch):
    """Nobody waits for the step that was just asked for, but at the end of a pass."""
    theirs = iter([0, 15, 0, 0, 2])  # signals of another process
    monkeypatch.setattr(
        torch.distributed, "all_reduce", lambda flag, op: flag.clamp_(min=next(theirs))
    )
    signals, strategy = StopSignals(None), SimpleNamespace(root_device=CUDA)
    with Pretend() as pretend, pretend.watch() as waits:
        assert signals._of_all(0, strategy, last=False) == 0
        assert waits == []
        assert signals._of_all(0, strategy, last=False) == 0  # the first step's
        assert signals._of_all(0, strategy, last=False) == 15
        assert len(waits) == 2
        assert signals._of_all(0, strategy, last=True) == 0
        assert signals._of_all(0, strategy, last=True) == 2


# ---------------------------------------------------------------- decoding

PROMPTS = [[5, 6, 7], [9, 8], [3, 4, 2, 1], [6]]
TOKENS = 9


def decoded(device, path, **options):
    policy = HFPolicy(tiny(), path=path).load().to(device)
    return decode(
        policy, PROMPTS, copies=3, uniforms=uniforms([(i,) for i in range(12)], TOKENS),
        max_new_tokens=TOKENS, **options,
    )  # fmt: skip


@pytest.mark.parametrize("path", ["packed", "padded"])
def test_decoding_asks_once_for_each_token(path):
    """Rows end early, and prompts enter late where they can."""
    options = {"end_ids": range(0, 250, 4)}
    if path == "packed":
        options["width"] = 6
    right = decoded(torch.device("cpu"), path, **options)
    assert 1 < len({len(row.ids) for row in right})
    with Pretend() as pretend, pretend.watch() as waits:
        found = decoded(CUDA, path, **options)
    assert [row.ids for row in found] == [row.ids for row in right]
    loop = [where for _, where in waits if where is not None and "engine/" in where]
    asked = [where for where in set(loop) if "decode.py" in where]
    # which rows have ended, and at the end the four columns of the rows
    assert set(loop) == set(asked) and len(asked) == 2
    assert sorted(loop.count(where) for where in asked)[0] == 4
    longest = max(len(row.ids) for row in right) * (2 if path == "packed" else 1)
    assert len(loop) - 4 <= longest


def test_decoding_without_ending_tokens_asks_for_nothing_but_the_result():
    with Pretend() as pretend, pretend.watch() as waits:
        decoded(CUDA, "packed")
    where = [place for _, place in waits if place is not None and "engine/" in place]
    assert len(where) == 4 and len(set(where)) == 1


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_decoding_with_deterministic_algorithms(deterministic, top_p):
    """trainer.deterministic=true; the same tokens as by torch's own sums."""
    right = decoded(torch.device("cpu"), "packed", top_p=top_p)
    with Pretend():
        with pytest.raises(RuntimeError, match="deterministic"):
            torch.ones(3, device=CUDA).cumsum(0)
        found = decoded(CUDA, "packed", top_p=top_p)
    assert [row.ids for row in found] == [row.ids for row in right]


@pytest.mark.parametrize("size", [5, 1000, 3000])
def test_sums_in_a_fixed_order(deterministic, size):
    masses = torch.rand(3, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    masses[:, ::3] = 0
    with Pretend():
        found = _cumulated(masses.to(CUDA)).to("cpu")
    torch.testing.assert_close(found, masses.cumsum(-1), rtol=1e-12, atol=0)
    if size <= 1024:  # of these tokens are drawn
        assert bool((found.diff() >= 0).all())
        assert bool((found.diff()[:, 2::3] == 0).all())


# ---------------------------------------------------------------- whole runs

SMALL = [
    "trainer.accelerator=gpu", "task=text", "model=tiny", "model.forward=packed",
    "sampler.max_new_tokens=5", "callbacks=minimal", "task.validation_prompts=2",
]  # fmt: skip
SAMPLED = [
    "data.prompts_per_round=4", "data.responses_per_prompt=2", "data.batch_size=2",
    "data.rounds=1", "reward=length",
]  # fmt: skip
PAIRS = ["objective=dpo", *SAMPLED, "data.micro_batch_tokens=60", "sampler.max_rows=4"]
RUNS = {
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
