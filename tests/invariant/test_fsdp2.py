"""Sharded training on two gloo processes: the same run as one process, and exact resume."""

import csv
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[1] / "integration"))

import crash_runner as crash

# A seed with which no uniform falls within rounding of an edge between two tokens: there one and two
# processes may draw different tokens, and the runs part.
SMALL = ["objective=dpo", "data.rounds=3", "data.reuse=2", "data.batch_size=5",
         "data.micro_batch_tokens=300", "callbacks=minimal", "seed=4",
         "checkpoint.every_n_steps=1"]  # fmt: skip
SHARDED = ["strategy=fsdp2", "trainer.accelerator=cpu", "trainer.devices=2"]


def grab(folder):
    return f"+callbacks.grab={{_target_: fsdp2_callbacks.Grab, file: {folder}.pt}}"


def one(overrides, folder):
    assert crash.start(crash.train, crash.composed(*overrides, grab(folder)), folder) == 0


def two(overrides, folder, *, codes=(0, 0)):
    assert crash.start_two(crash.train, crash.composed(*overrides, *SHARDED), folder) == list(codes)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, session_cache):
    folder = tmp_path_factory.mktemp("fsdp2") / "run"
    two([*SMALL, grab(folder)], folder)
    return folder


def rows(folder):
    return list(csv.DictReader((folder / "metrics.csv").open()))


def assert_same_gradients(folder, sharded, steps):
    ours, theirs = (torch.load(f"{f}.pt", weights_only=True) for f in (folder, sharded))
    assert len(ours) == len(theirs) >= max(steps)
    for step in steps:
        a, b = ours[step - 1], theirs[step - 1]
        assert a.norm() > 0
        assert (a - b).norm() / a.norm() < 1e-5, step


def test_the_same_run_as_one_process(sharded, tmp_path):
    one(SMALL, tmp_path / "one")
    assert_same_gradients(tmp_path / "one", sharded, (1, 2, 8))
    ours, theirs = rows(tmp_path / "one"), rows(sharded)
    assert len(ours) == len(theirs) == 13
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        assert float(b["loss"]) == pytest.approx(float(a["loss"]), rel=1e-5)
        assert float(b["grad_norm"]) == pytest.approx(float(a["grad_norm"]), rel=1e-5)
    a = load_file(tmp_path / "one" / "export" / "model.safetensors")
    b = load_file(sharded / "export" / "model.safetensors")
    assert set(a) == set(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-4, rtol=0)


def test_checkpoints_are_one_whole_file(sharded):
    saved = torch.load(sharded / "checkpoints" / "last.ckpt", weights_only=True)
    exported = load_file(sharded / "export" / "model.safetensors")
    weights = {k.removeprefix("policy.model."): v for k, v in saved["state_dict"].items()}
    assert set(exported) <= set(weights)
    assert all(torch.equal(exported[k], weights[k]) for k in exported)


def test_a_loss_that_couples_the_batch(tmp_path, session_cache):
    """Two passes over the model in each step, with an unequal number of micro-batches."""
    kto = ["objective=kto", *SMALL[1:], "data.rounds=1", "data.micro_batch_tokens=70"]
    one(kto, tmp_path / "one")
    two([*kto, grab(tmp_path / "two")], tmp_path / "two")
    assert_same_gradients(tmp_path / "one", tmp_path / "two", (1, 2, 4))


def test_an_interrupted_run_goes_on_bitwise(sharded, tmp_path):
    folder = tmp_path / "run"
    stop = "+callbacks.stop={_target_: fsdp2_callbacks.Stop, step: 7}"
    two([*SMALL, stop], folder, codes=(143, 143))
    assert crash.start_two(crash.resume, folder, ("callbacks.stop=null",)) == [0, 0]
    for name in ("metrics.csv", "samples.jsonl", "validation.jsonl", "export/model.safetensors"):
        assert (folder / name).read_bytes() == (sharded / name).read_bytes(), name


@pytest.mark.parametrize(
    ("kind", "shards"),
    [("DPO", True), ("KTO", True), ("GRPO", True), ("PPO", False), ("RewardModel", False),
     ("TRDPO", False)],
)  # fmt: skip
def test_what_cannot_be_sharded_says_so(kind, shards, monkeypatch):
    import lit_pref
    from lit_pref.policies import FrozenReference
    from lit_pref.testing import TinyPolicy

    module = getattr(lit_pref, kind)(TinyPolicy(), reference=FrozenReference())
    assert module.shards is shards
    if not shards:
        monkeypatch.setattr(type(module), "device_mesh", {"data_parallel": None})
        with pytest.raises(lit_pref.Refusal, match="strategy=ddp"):
            module.configure_model()
