"""Whole runs with adapters: what their checkpoints hold, and what is made of them afterwards."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

pytest.importorskip("peft")

SMALL = [
    "objective=dpo", "data=onpolicy", "data.rounds=2", "callbacks=minimal", "model.lora.rank=2",
    "optimizer.lr=0.01", "+task.validation_prompts=4",
]  # fmt: skip


@pytest.fixture(scope="module", params=["merged", "adapter"])
def run(request, tmp_path_factory, session_cache):
    from omegaconf import OmegaConf

    from lit_pref.app.preflight import compose_config, composing
    from lit_pref.app.run import run_job

    folder = tmp_path_factory.mktemp("lora") / "run"
    overrides = [*SMALL, f"model.lora.export={request.param}", f"paths.run_dir={folder}"]
    with composing():
        cfg = compose_config(overrides)
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    assert run_job(cfg, folder).status == "finished"
    return request.param, folder


def state_of(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_checkpoints_hold_adapters_alone(run):
    state = state_of(run[1])
    assert state and all(".lora_" in name for name in state)
    assert any(v.any() for name, v in state.items() if "lora_B" in name)  # they have trained


def test_exports_of_the_run_and_of_its_checkpoint_are_the_policy(run, tmp_path, command):
    from omegaconf import OmegaConf

    from lit_pref.app.build import task_and_policy

    kind, folder = run
    code, _, err = command("export", folder, f"output={tmp_path}/m")
    assert code == 0, err
    policy = task_and_policy(OmegaConf.load(folder / "config.yaml"))[1].load()
    start = policy.whole_state()
    state = state_of(folder)
    policy.load_state_dict({k.removeprefix("policy."): v for k, v in state.items()})
    whole = policy.whole_state()
    assert any(not torch.equal(whole[k], start[k]) for k in start)
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        wanted = policy.model(ids).logits
    for where in (folder / "export", tmp_path / "m"):
        if kind == "merged":
            assert not (where / "adapter_config.json").exists()
            model = AutoModelForCausalLM.from_pretrained(where)
        else:
            from peft import PeftModel

            assert {p.suffix for p in where.iterdir()} >= {".json", ".safetensors"}
            assert not (where / "config.json").exists()
            said = json.loads((where / "adapter_config.json").read_text())
            assert said["r"] == 2
            bare = task_and_policy(OmegaConf.load(folder / "config.yaml"))[1]
            bare.lora = None
            model = PeftModel.from_pretrained(bare.load().model, where)
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, wanted, atol=1e-5, rtol=1e-5)


def test_runs_with_adapters_are_evaluated_and_sampled_from(run, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = command("evaluate", run[1])
    assert code == 0, err
    code, _, err = command("generate", run[1])
    assert code == 0, err
