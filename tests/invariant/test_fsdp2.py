"""Sharded training on two gloo processes: the same run as one process, and exact resume."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SMALL = ["objective=dpo", "data.rounds=3", "data.reuse=2", "data.batch_size=5",
         "data.micro_batch_tokens=300", "callbacks=minimal", "seed=2",
         "checkpoint.every_n_steps=1"]  # fmt: skip
SHARDED = ["strategy=fsdp2", "trainer.accelerator=cpu", "trainer.devices=2"]


def run(*arguments, code=0, path=None):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{path or ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, session_cache):
    folder = tmp_path_factory.mktemp("fsdp2") / "run"
    run(*SMALL, *SHARDED, f"hydra.run.dir={folder}")
    return folder


def rows(folder):
    return list(csv.DictReader((folder / "metrics.csv").open()))


def test_the_same_run_as_one_process(sharded, tmp_path):
    run(*SMALL, f"hydra.run.dir={tmp_path}/one")
    one, two = rows(tmp_path / "one"), rows(sharded)
    assert len(one) == len(two) == 13
    for a, b in zip(one[1:], two[1:], strict=True):
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


def test_an_interrupted_run_goes_on_bitwise(sharded, tmp_path):
    (tmp_path / "stopper.py").write_text(
        "import os, signal\n"
        "import lightning as L\n"
        "class Stop(L.Callback):\n"
        "    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):\n"
        "        if trainer.global_step == 7 and trainer.is_global_zero:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    folder = tmp_path / "run"
    stop = "+callbacks.stop={_target_: stopper.Stop}"
    run(*SMALL, *SHARDED, f"hydra.run.dir={folder}", stop, path=tmp_path,
        code=128 + signal.SIGTERM)  # fmt: skip
    run(f"resume={folder}", "callbacks.stop=null")
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
