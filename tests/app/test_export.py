"""``lit-pref export`` and ``lit-pref report``."""

import pytest
import torch
from transformers import AutoModelForCausalLM


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_the_export_is_the_checkpoint(bandit_run, tmp_path, command):
    code, out, _ = command("export", "run", "output=m")
    assert code == 0 and out.strip() == "m"
    saved = torch.load(bandit_run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    found = weights(tmp_path / "m")
    assert {f"policy.model.{k}" for k in found} == {k for k in saved if k.startswith("policy.")}
    for name, value in found.items():
        assert torch.equal(value, saved[f"policy.model.{name}"]), name
    own = weights(bandit_run / "export")
    assert all(torch.equal(own[k], found[k]) for k in own)


def test_a_checkpoint_file_and_the_best(bandit_run, tmp_path, command):
    file = bandit_run / "checkpoints" / "previous.ckpt"
    assert command("export", file, "output=before")[0] == 0
    saved = torch.load(file, weights_only=True)["state_dict"]
    for name, value in weights(tmp_path / "before").items():
        assert torch.equal(value, saved[f"policy.model.{name}"])
    assert command("export", "run", "checkpoint=best")[0] == 0
    assert (bandit_run / "export_best" / "config.json").exists()


def test_a_text_model_brings_its_tokenizer(tmp_path, monkeypatch, command):
    from omegaconf import OmegaConf

    from lit_pref.policies import HFPolicy, hf, tiny

    policy = HFPolicy(tiny(seed=5)).load()
    (tmp_path / "checkpoints").mkdir()
    state = {f"policy.{k}": v for k, v in policy.state_dict().items()}
    torch.save({"state_dict": state, "global_step": 7}, tmp_path / "checkpoints" / "last.ckpt")
    model = {
        "name": "tiny", "_target_": "lit_pref.policies.models.tiny", "context_length": 512,
        "seed": 0, "forward": "auto", "gradient_checkpointing": False,
    }  # fmt: skip
    OmegaConf.save(OmegaConf.create({"model": model}), tmp_path / "config.yaml")
    assert command("export", tmp_path, f"output={tmp_path}/m")[0] == 0
    spec = hf(tmp_path / "m")
    assert spec.tokenizer.decode(spec.tokenizer("hi")["input_ids"]) == "hi"
    for name, value in HFPolicy(spec).load().state_dict().items():
        assert torch.equal(value, policy.state_dict()[name]), name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected one run directory or checkpoint file, got 0"),
        (["run"], "run/export is there already"),
        (["run", "outptu=m"], "Did you mean output?"),
        (["run", "output=m", "checkpoint=worst"], "this run has last, best, export"),
        (["lost.ckpt"], "lost.ckpt is not a folder"),
        (["stray.ckpt"], "beside its config.yaml"),
        (["run", "output=/dev/null/m"], "cannot be written"),
    ],
)
def test_refusals(bandit_run, tmp_path, command, arguments, words):
    (tmp_path / "stray.ckpt").write_text("")
    code, _, err = command("export", *arguments)
    assert code == 2
    assert err.count("Refused:") == 1 and words in err


def test_damaged_and_foreign_checkpoints_are_refused(bandit_run, tmp_path, command):
    folder = bandit_run / "checkpoints"
    (folder / "best.ckpt").unlink()  # one file under several names
    (folder / "best.ckpt").write_bytes(b"nothing of the kind")
    code, _, err = command("export", "run", "checkpoint=best", "output=m")
    assert code == 2 and "cannot be read as a checkpoint" in err
    (folder / "best.ckpt").unlink()
    state = {"policy.model.lm_head.weight": torch.zeros(3, 3)}
    torch.save({"state_dict": state}, folder / "best.ckpt")
    code, _, err = command("export", "run", "checkpoint=best", "output=m")
    assert code == 2 and "weights of another model" in err
    assert not (tmp_path / "m").exists()


def test_report_writes_the_page_again(bandit_run, command):
    (bandit_run / "report.html").unlink()
    code, out, _ = command("report", "run")
    assert code == 0 and "report.html" in out
    assert (bandit_run / "report.html").exists()
    code, _, err = command("report")
    assert code == 2 and "expected at least one run directory" in err
    code, _, err = command("report", "nothing_here")
    assert code == 2 and err.startswith("Refused:")


@pytest.fixture(scope="session")
def reward_run(tmp_path_factory, session_cache):
    from omegaconf import OmegaConf

    from lit_pref.app.preflight import compose_config, composing
    from lit_pref.app.run import run_job

    folder = tmp_path_factory.mktemp("rewards") / "model"
    with composing():
        cfg = compose_config(
            [
                "objective=reward_model",
                "data=offline",
                "callbacks=minimal",
                "data.reuse=2",
                f"paths.run_dir={folder}",
            ]
        )
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    assert run_job(cfg, folder).status == "finished"
    return folder


def test_a_reward_model_is_exported_with_its_head(reward_run, tmp_path, command):
    from safetensors.torch import load_file

    code, _out, err = command("export", reward_run, f"output={tmp_path}/m")
    assert code == 0, err
    own, mine = (
        load_file(f / "model.safetensors") for f in (reward_run / "export", tmp_path / "m")
    )
    assert "score.weight" in mine and mine.keys() == own.keys()
    assert all(torch.equal(own[k], mine[k]) for k in own)
    code, _, err = command("export", reward_run, "checkpoint=export", f"output={tmp_path}/n")
    assert code == 2 and "copy the folder" in err


@pytest.mark.parametrize("name", ["evaluate", "generate"])
def test_a_reward_model_does_not_respond(reward_run, tmp_path, command, name):
    code, _, err = command(name, reward_run, f"output={tmp_path}/out")
    assert code == 2 and "trains a reward model, and no policy" in err
