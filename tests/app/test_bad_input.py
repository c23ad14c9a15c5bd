"""A mistake gives one message, exit code 2 and no traceback, before any weight is loaded."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lit_pref.app.preflight import check_arguments, did_you_mean
from lit_pref.errors import Refusal

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["objectve=dpo"], "Did you mean objective"),
        (["objective=dpoo"], "Did you mean dpo"),
        (["data=onpolicyy"], "Did you mean onpolicy?"),
        (["data.ruse=3"], "Did you mean data.reuse"),
        (["optimizer.lrr=1"], "Did you mean optimizer.lr"),
        (["beta=0.1"], "Did you mean objective.beta?"),
        (["tasks=text"], "Did you mean task"),
        (["foo"], "expected key=value"),
        (["trainer.max_epochs=3"], "use data.rounds and data.reuse"),
        (["trainer.gradient_clip_val=1"], "use optimizer.clip_norm"),
        (["model=hf"], "model.path must be given"),
        (["reward=regex"], "reward.pattern must be given"),
        (["-m", "objective=dpo,ipoo"], "objective=ipoo"),
        (["hydra.run.dir=/dev/null/run"], "cannot be made"),
    ],
)
def test_found_before_anything_heavy_is_imported(arguments, words):
    with pytest.raises(Refusal) as refusal:
        check_arguments(arguments)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["objective=dpo", "data=onpolicy", "seed=3"],
        ["+trainer.limit_train_batches=3"],
        ["-m", "objective=dpo,reinforce", "data.reuse=1,4", "seed=0,1"],
        ["task.columns={chosen: a}", "task=text", "reward=length"],
        ["~logger"],
        ["--help"],
        ["hydra.run.dir=here"],
    ],
)
def test_right_arguments_pass(arguments):
    check_arguments(arguments)


def test_did_you_mean_prefers_the_right_key_in_another_place():
    names = ["objective.beta", "data.name", "optimizer.betas"]
    assert did_you_mean("beta", names).startswith(" Did you mean objective.beta")
    assert did_you_mean("zzzz", names) == ""


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=environment.pop("cwd", ROOT),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )


def test_the_command_line_prints_the_message_alone(tmp_path):
    out = run("objective=dpo", "objective.beta=0", f"hydra.run.dir={tmp_path}/run")
    assert out.returncode == 2
    assert out.stderr.strip().startswith("Refused: objective.beta must be larger than 0, got 0")
    assert "Traceback" not in out.stderr + out.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "refused"
    assert "objective.beta" in summary["reason"]


def test_several_values_without_a_sweep_are_pointed_to_it():
    out = run("objective=dpo,ipo")
    assert out.returncode == 2 and "which make a sweep: add -m" in out.stderr
    assert "there is no such option" in run("objective=dpo,iop").stderr


def test_help_is_light_and_useful():
    code = (
        "import sys; sys.argv = ['train.py', '--help']\n"
        "from lit_pref.app.train import main\n"
        "try:\n    main()\n"
        "finally:\n    print('torch' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert out.stdout.strip().endswith("False")
    for word in ("objective:", "data:", "python train.py objective=dpo data=onpolicy"):
        assert word in out.stdout
    assert out.stdout.count("  python train.py") >= 3


# The rest runs in this process: building parts, without a run.


def refused(overrides, tmp_path):
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from lit_pref.app.preflight import config_dir
    from lit_pref.app.run import run_job

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", overrides=[*overrides, f"paths.run_dir={tmp_path}"])
    outcome = run_job(cfg, tmp_path)
    assert (outcome.status, outcome.exit_code) == ("refused", 2), outcome.reason
    return outcome.reason


TEXT = ["task=text", "model=tiny", "reward=length"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["objective=reinforce", "data=offline"], ["REINFORCE", "data=onpolicy"]),
        (["data.responses_per_prompt=1"], ["at least 2 responses", "data.responses_per_prompt=2"]),
        (["objective.beta=-1"], ["objective.beta", "-1"]),
        (["objective.pairs=best"], ["best_worst", "bradley_terry"]),
        (["objective.negative_weight=2"], ["[0, 1]"]),
        (["objective.label_smoothing=0.5"], ["[0, 0.5)"]),
        (["reference=none"], ["reference=frozen"]),
        (["task=text", "model=tiny"], ["reward=task", "reward=length"]),
        ([*TEXT, "data=offline"], ["task.pairs=FILE"]),
        (["data.batch_size=3"], ["1, 2, 5"]),
        (["optimizer.lr=-1"], ["optimizer.lr"]),
        (["optimizer.clip_norm=0"], ["clip_norm"]),
        (["optimizer.lr=small"], ["optimizer.lr must be a number, got 'small'"]),
        (["scheduler.warmup_steps=no"], ["scheduler.warmup_steps must be a number"]),
        (["objective.beta=abc"], ["DPO", "beta must be a number, got 'abc'"]),
        (["seed=a"], ["seed must be a whole number", "'a'"]),
        (["sampler.top_p=0"], ["sampler.top_p", "(0, 1]"]),
        (["sampler.temperature=-1"], ["sampler.temperature"]),
        ([*TEXT, "sampler.max_new_tokens=600"], ["512"]),
        (["+trainer.accumulate_grad_batches=2"], ["data.micro_batch_tokens"]),
        (["+trainer.gradient_clip_val=1.0"], ["optimizer.clip_norm"]),
        (["+trainer.max_epochs=3"], ["data.rounds"]),
        (["trainer.precision=16-mixed"], ["bf16-mixed"]),
        (["trainer.strategy=fsdp"], ["strategy=fsdp2"]),
        (["strategy=deepspeed"], ["pip install", "deepspeed"]),
        (["trainer.strategy=ddp_spawn"], ["strategy=ddp"]),
        (["trainer.precision=99"], ["lightning.Trainer"]),
        (["model=hf", "model.path=/no/such/folder", *TEXT[::2]], ["/no/such/folder"]),
        (["reward=callable", "reward.function=math.sqr"], ["math.sqrt"]),
        (["reward=length", "reward.max_new_tokens=abc"], ["LengthReward"]),
        (["checkpoint.mode=up"], ["checkpoint.mode"]),
        (
            ["task=contextual_bandit", "model.gradient_checkpointing=true"],
            ["model.gradient_checkpointing", "language models", "context_mlp"],
        ),
        (["model=gpt_nano_legacy", "model.forward=packed"], ["model.forward", "gpt_nano_legacy"]),
    ],
    ids=lambda v: "+".join(v)[:40] if isinstance(v, list) else None,
)
def test_combinations_are_refused(overrides, words, tmp_path):
    reason = refused(overrides, tmp_path)
    for word in words:
        assert word in reason, reason
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_column_that_the_reward_asks_for_is_missed_at_once(tmp_path, monkeypatch):
    (tmp_path / "needs_answer.py").write_text(
        "def exact(prompts, responses, answer):\n    return [0.0 for _ in responses]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"prompt": "p", "answer": "a"}\n' * 16)
    (tmp_path / "held.jsonl").write_text('{"prompt": "q", "anwser": "a"}\n')
    callable_ = [*TEXT[:2], "reward=callable", "reward.function=needs_answer.exact"]
    reason = refused(callable_, tmp_path)
    assert "'answer' is no column of these prompts (they have none)" in reason
    files = [f"task.prompts={tmp_path}/train.jsonl", f"task.validation={tmp_path}/held.jsonl"]
    reason = refused([*callable_, *files], tmp_path)
    assert "held.jsonl" in reason and "(they have anwser; did you mean anwser?)" in reason
    assert not list(tmp_path.rglob("samples.jsonl"))


def pairs_file(tmp_path, *lines):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return [*TEXT, "data=offline", f"task.pairs={path}", "data.batch_size=1"]


GOOD = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"})


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([""], ["has no rows"]),
        ([GOOD, "{broken"], ["line 2", "JSON"]),
        ([json.dumps({"prompt": "a", "choosen": "b", "rejected": "c"})], ["chosen", "choosen"]),
        ([json.dumps({"prompt": "", "chosen": "b", "rejected": "c"})], ["prompt"]),
        ([json.dumps({"prompt": "x" * 600, "chosen": "b", "rejected": "c"})], ["long"]),
        ([json.dumps({"prompt": "a", "chosen": "", "rejected": "c"})], ["chosen"]),
        ([json.dumps({"prompt": 3, "chosen": "b", "rejected": "c"})], ["prompt"]),
    ],
)
def test_files_are_refused_with_the_place(lines, words, tmp_path):
    reason = refused(pairs_file(tmp_path, *lines), tmp_path / "run")
    assert "pairs.jsonl" in reason
    for word in words:
        assert word in reason, reason


def test_missing_file(tmp_path):
    reason = refused([*TEXT, "task.prompts=/no/such.jsonl"], tmp_path)
    assert "/no/such.jsonl" in reason


def test_a_key_that_the_class_does_not_take_is_named():
    from lit_pref.app.build import make

    node = {"_target_": "lit_pref.sampling.native.NativeSampler", "max_new_tokens": 3}
    assert make(OmegaConf.create({**node, "name": "native"})).max_new_tokens == 3
    for key in ("lr", "sizes", "monitor"):  # for other groups, of other groups
        with pytest.raises(Refusal, match=f"does not take the key '{key}'"):
            make(OmegaConf.create({**node, key: 1}))
    with pytest.raises(
        Refusal, match=r"'temprature'\. Did you mean temperature.*It takes cuda_graphs, max_new"
    ):
        make(OmegaConf.create({**node, "temprature": 1}))


def test_keys_that_a_class_passes_on_to_its_base_are_known():
    from lit_pref.app.build import make

    node = OmegaConf.create({"_target_": "lit_pref.objectives.DPO", "min_gapp": 1})
    with pytest.raises(Refusal, match=r"'min_gapp'\. Did you mean min_gap.*beta.*pair_mean"):
        make(node, policy=None)


@pytest.mark.parametrize("target", ["no_such_package.Mine", "lit_pref.objectives.Mine"])
def test_a_target_that_cannot_be_imported_is_said_once(target, caplog):
    from lit_pref.app.build import make

    with pytest.raises(Refusal, match=r"cannot import.*\w+Error: .*PYTHONPATH") as refusal:
        make(OmegaConf.create({"_target_": target}))
    assert "\n" not in str(refusal.value)
    assert not caplog.records


def test_warnings_of_lightning_that_do_not_apply_are_kept_out_and_others_are_not():
    from lit_pref.app.quiet import quiet_lightning

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        quiet_lightning()
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated", stacklevel=1)
        warnings.warn("Found 3 module(s) in eval mode at the start of training.", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [str(w.message) for w in said] == ["something else"]


def test_messages_without_a_chat_template(tmp_path):
    from lit_pref.policies import tiny

    spec = tiny()
    folder = tmp_path / "plain"
    spec.load().save_pretrained(folder)
    spec.tokenizer.chat_template = None
    spec.tokenizer.save_pretrained(folder)
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": [{"role": "user", "content": "hi"}]}) + "\n")
    overrides = [
        "task=text", "reward=length", "model=hf", f"model.path={folder}", f"task.prompts={path}",
    ]  # fmt: skip
    assert "chat template" in refused(overrides, tmp_path / "run")


def test_checkpoint_of_another_objective(tmp_path):
    from lit_pref.objectives import DPO, REINFORCE
    from lit_pref.policies import FrozenReference, HFPolicy, gpt_nano

    one = DPO(HFPolicy(gpt_nano()), reference=FrozenReference())
    saved = {}
    one.on_save_checkpoint(saved)
    with pytest.raises(Refusal, match=r"another objective.*'DPO'.*'REINFORCE'"):
        REINFORCE(HFPolicy(gpt_nano())).on_load_checkpoint(saved)
    with pytest.raises(Refusal, match="another model"):
        DPO(HFPolicy(gpt_nano(seed=1)), reference=FrozenReference()).on_load_checkpoint(saved)


def test_an_objective_without_a_name_is_told_to_have_one(tmp_path):
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective" / "mine.yaml").write_text("_target_: lit_pref.objectives.DPO\n")
    with pytest.raises(Refusal, match=r"objective has no key name.*name: my_objective"):
        check_arguments(["--config-dir", str(tmp_path), "objective=mine"])


def test_resume_of_something_else(tmp_path):
    from lit_pref.app.resume import resume_run

    run = tmp_path / "a_run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(Refusal, match=f"give the run: resume={run}"):
        resume_run(run / "checkpoints" / "last.ckpt", [])
    with pytest.raises(Refusal, match="not a run directory"):
        resume_run(tmp_path, [])
