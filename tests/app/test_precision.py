"""``trainer.precision=auto`` becomes a precision before anything is built, and stays it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from lit_pref.app import precision
from lit_pref.app.precision import faster_precision, settle_precision
from lit_pref.types import Refusal

TRAIN = str(Path(__file__).parents[2] / "train.py")
CPU = torch.device("cpu")


def config(value="auto", accelerator="cpu"):
    return OmegaConf.create({"trainer": {"precision": value, "accelerator": accelerator}})


@pytest.mark.parametrize(
    ("half", "found"),
    [(0.5, "bf16-mixed"), (0.89, "bf16-mixed"), (0.95, "32-true"), (3, "32-true")],
)
def test_the_faster_one_is_taken_when_it_is_clearly_faster(monkeypatch, half, found):
    monkeypatch.setattr(precision, "_seconds", lambda layer, x, *, half: own if half else 1.0)
    own = half
    cfg = config()
    settle_precision(cfg)
    assert cfg.trainer.precision == found


def test_both_are_really_tried(monkeypatch):
    kinds, run = [], precision._seconds

    def watched(layer, x, *, half):
        layer[0].register_forward_hook(lambda m, i, o: kinds.append(o.dtype))
        return run(layer, x, half=half)

    monkeypatch.setattr(precision, "_seconds", watched)
    monkeypatch.setattr(precision, "WIDTH", 32)
    state = torch.get_rng_state()
    assert faster_precision(CPU) in ("32-true", "bf16-mixed")
    assert set(kinds) == {torch.float32, torch.bfloat16}
    assert torch.equal(torch.get_rng_state(), state)  # the run's random numbers are its own


def test_what_is_given_stays(monkeypatch):
    monkeypatch.setattr(precision, "faster_precision", lambda device: pytest.fail("tried"))
    for value in ("32-true", "bf16-mixed"):
        cfg = config(value)
        settle_precision(cfg)
        assert cfg.trainer.precision == value


@pytest.mark.parametrize("accelerator", ["tpu", "mps"])
def test_other_accelerators_are_refused(accelerator):
    with pytest.raises(Refusal, match=f"trainer.accelerator={accelerator} is neither.*bf16-mixed"):
        settle_precision(config(accelerator=accelerator))


def test_processes_of_a_launcher_are_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(Refusal, match=r"under torchrun.*give trainer.precision"):
        settle_precision(config())


def test_a_run_is_saved_and_resumed_with_what_was_found(tmp_path):
    small = [
        "data=onpolicy",
        "data.rounds=2",
        "data.prompts_per_round=4",
        "data.batch_size=4",
        "task=token_bandit",
        "~callbacks",
        "~logger",
    ]
    command = [sys.executable, TRAIN, "objective=reinforce", *small,
               "trainer.precision=auto", f"hydra.run.dir={tmp_path}/run"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "trainer.precision=auto: " in done.stdout + done.stderr
    found = OmegaConf.load(tmp_path / "run" / "config.yaml").trainer.precision
    assert found in ("32-true", "bf16-mixed")
    resumed = [sys.executable, TRAIN, f"resume={tmp_path}/run", "data.rounds=3"]
    done = subprocess.run(resumed, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "trainer.precision=auto" not in done.stdout + done.stderr  # it is not tried again
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").trainer.precision == found
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 3)


def test_sweeps_refuse_it(tmp_path):
    command = [sys.executable, TRAIN, "-m", "objective=dpo,ipo",
               "trainer.precision=auto"]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False
    )
    assert done.returncode == 2
    assert "trainer.precision=auto" in done.stderr and "bf16-mixed" in done.stderr
    assert not list(tmp_path.rglob("summary.json"))
