"""Every process measures and tries its own GPU, not the first one."""

import pytest
import torch
from omegaconf import OmegaConf

from lit_pref.app import memory_plan, precision
from lit_pref.app.own_gpu import own_gpu
from lit_pref.app.preflight import compose_config, composing
from lit_pref.app.processes import COUNT

LAUNCHED = {COUNT: "4", "LOCAL_RANK": "3"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "1", "RANK": "9"}
SLURM = {"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "train", "SLURM_LOCALID": "2", "SLURM_PROCID": "6"}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in (*LAUNCHED, *TORCHRUN, *SLURM):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("devices", "environment", "index"),
    [
        (1, {}, 0),
        ("auto", {}, 0),
        ([2], {}, 2),
        ("0,2,", {}, 0),
        (4, LAUNCHED, 3),
        ([4, 5, 6, 7], LAUNCHED, 7),
        ("4,5,6,7", LAUNCHED, 7),
        (-1, TORCHRUN, 1),
        (8, SLURM, 2),
    ],
)
def test_as_lightning_chooses(monkeypatch, devices, environment, index):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    cfg = OmegaConf.create({"trainer": {"devices": devices}})
    assert own_gpu(cfg) == torch.device("cuda", index)


def test_what_is_measured_and_tried(monkeypatch, tmp_path):
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = []
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device: asked.append(device) or (2**40, 2**40)
    )
    monkeypatch.setattr(
        precision, "faster_precision", lambda device: asked.append(device) or "32-true"
    )
    with composing():
        run = ["task=text", "model=tiny", "reward=length", f"paths.run_dir={tmp_path}"]
        cfg = compose_config([*run, "trainer.devices=4"])
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    cfg.trainer.precision = "auto"
    precision.settle_precision(cfg)
    from lit_pref.app.build import build

    memory_plan.check_memory(cfg, build(cfg))
    assert asked
    assert set(asked) == {torch.device("cuda", 3)}
