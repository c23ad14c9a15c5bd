"""Runs that a task needs: planned, made once, kept, and safe to interrupt."""

import json
import threading
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lit_pref.app import launch
from lit_pref.app import prepare as module
from lit_pref.app.outcome import Outcome
from lit_pref.app.preflight import compose_config, composing
from lit_pref.app.prepare import PreparationFailed, plan, prepare
from lit_pref.app.run import run_job
from lit_pref.types import Refusal


def composed(*overrides, cache, task="min_length"):
    with composing():
        cfg = compose_config([f"task={task}", *overrides, "paths.run_dir=."])
    cfg = OmegaConf.create(OmegaConf.to_container(cfg))
    cfg.paths.cache_dir = str(cache)
    return cfg


def finish(each, **summary):
    """As if the run had been made."""
    each.folder.mkdir(parents=True, exist_ok=True)
    each.path.parent.mkdir(parents=True, exist_ok=True)
    if not each.path.exists():
        each.path.write_text("")
    (each.folder / "summary.json").write_text(json.dumps({"status": "finished", **summary}))


def test_null_keys_get_their_runs(tmp_path):
    cfg = composed(cache=tmp_path)
    start, pairs, reward = plan(cfg)
    assert [p.command for p in (start, pairs, reward)] == ["train", "generate", "train"]
    assert cfg.model.path == str(start.folder / "export")
    assert cfg.task.pairs == str(pairs.folder / "samples.jsonl")
    assert cfg.reward.path == str(reward.folder)
    assert start.folder.name.startswith("word_start_sft_")
    assert start.config["objective"]["name"] == "sft" and start.config["data"]["name"] == "offline"
    assert pairs.arguments[0] == cfg.model.path
    assert reward.config["model"]["path"] == cfg.model.path
    assert reward.config["task"]["pairs"] == cfg.task.pairs
    assert not any(tmp_path.iterdir())  # nothing is made
    assert [p.name for p in plan(cfg)] == ["start", "pairs", "reward"]  # as a resumed run asks
    for each in (start, pairs, reward):
        finish(each)
    assert plan(composed(cache=tmp_path)) == []


def test_the_fingerprint_is_of_what_matters(tmp_path):
    def folders(*overrides, cache=tmp_path, task="min_length"):
        return [p.folder.name for p in plan(composed(*overrides, cache=cache, task=task))]

    base = folders()
    assert folders("seed=3", "optimizer.lr=1", "data=offline", cache=tmp_path / "else") == base
    skew = folders(task="skew_length")
    assert skew[:2] == base[:2] and skew[2] != base[2]
    assert folders("task.cut_share=0.5", task="skew_length")[2] not in (base[2], skew[2])
    fewer = folders("task.train_prompts=100")
    assert fewer[0] == base[0] and fewer[1] != base[1] and fewer[2] != base[2]
    larger = folders("model.width=96")
    assert not set(larger) & set(base)


def test_the_version_of_the_package_is_part_of_it(tmp_path, monkeypatch):
    before = plan(composed(cache=tmp_path))[0].folder
    monkeypatch.setattr(module.lit_pref, "__version__", "99")
    assert plan(composed(cache=tmp_path))[0].folder != before


def test_what_the_user_gives_is_left_alone(tmp_path):
    own = tmp_path / "own model"
    own.mkdir()
    cfg = composed(f"model.path='{own}'", "reward=task", cache=tmp_path)
    (pairs,) = plan(cfg)  # reward=task has no path to fill
    assert cfg.model.path == str(own) and pairs.arguments[0] == str(own)
    cfg = composed("model.path=nowhere", cache=tmp_path)
    assert "start" not in [p.name for p in plan(cfg)] and cfg.model.path == "nowhere"


def test_tasks_without_runs_have_none(tmp_path):
    assert plan(composed(cache=tmp_path, task="token_bandit")) == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["reward=prepared"], "reward=prepared is for tasks that train a reward model"),
        (["+task.prepare.x.command=train"], "expected command, gives, overrides, takes"),
    ],
)
def test_refusals(tmp_path, overrides, words):
    with pytest.raises(Refusal, match=words):
        plan(composed(*overrides, cache=tmp_path, task="token_bandit"))


def test_a_model_of_another_kind_is_refused(tmp_path):
    with pytest.raises(Refusal, match="refers to a key that model=gpt_nano has not"):
        plan(composed("model=gpt_nano", cache=tmp_path))


@pytest.mark.parametrize(
    ("outcome", "error", "words"),
    [
        (Outcome("failed", 1, reason="no luck"), PreparationFailed, "'start' failed: no luck"),
        (Outcome("refused", 2, reason="cannot"), Refusal, "'start' refused: cannot"),
        (Outcome("finished", 0), PreparationFailed, "ended without"),
        (Outcome("interrupted", 143, reason="x"), KeyboardInterrupt, None),
    ],
)
def test_bad_ends_name_the_folder(tmp_path, monkeypatch, outcome, error, words):
    monkeypatch.setattr(launch, "run_apart", lambda message, output: outcome)
    missing = plan(composed(cache=tmp_path))
    with pytest.raises(error) as caught:
        prepare(missing)
    if words is None:
        assert caught.value.signum == 15
    else:
        assert words in str(caught.value) and str(missing[0].folder) in str(caught.value)
    cfg = composed(cache=tmp_path)
    ended = run_job(cfg, tmp_path / "run")
    expected = {"finished": "failed"}.get(outcome.status, outcome.status)
    assert ended.status == expected
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == expected
    saved = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert saved.model.path == str(missing[0].path)  # so that it can be resumed and evaluated


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(launch, "run_apart", lambda m, o: told.append(m) or Outcome("failed", 1))
    start = plan(composed(cache=tmp_path))[0]
    for _ in range(2):
        with pytest.raises(PreparationFailed):
            prepare([start])
        (start.folder / "config.yaml").write_text("")
    assert [m["resume"] for m in told] == [False, True]
    config = OmegaConf.create(told[1]["config"])
    assert config.resume == config.paths.run_dir == str(start.folder)


def test_one_of_several_processes_makes_it(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    (start, *_) = plan(composed(cache=tmp_path))
    made, inside = [], threading.Event()

    def slow(message, output):
        made.append(message)
        inside.set()
        time.sleep(0.3)
        finish(start)
        return Outcome("finished", 0)

    monkeypatch.setattr(launch, "run_apart", slow)
    first = threading.Thread(target=prepare, args=([start],))
    first.start()
    inside.wait(10)
    prepare([start])
    first.join()
    assert len(made) == 1
    assert "another process prepares it" in caplog.text


def test_a_launchers_variables_do_not_reach_it(tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "GROUP_RANK"):
        monkeypatch.setenv(name, "3")
    program = "import os, json, sys; m = json.loads(sys.stdin.readline()); print(sorted(os.environ)); \
json.dump({'status': 'finished', 'exit_code': 0, 'metric': None, 'reason': '', 'at': 0}, open(m['outcome'], 'w'))"
    with (tmp_path / "log").open("wb") as printed:
        processes = launch._Processes(
            tmp_path, 1, ["python3", "-c", program], alone=True, printed=printed
        )
        processes.start({})
        processes.wait()
    assert processes.outcome().status == "finished"
    seen = (tmp_path / "log").read_text()
    assert "'LOCAL_RANK'" in seen and "'PATH'" in seen
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "GROUP_RANK"):
        assert f"'{name}'" not in seen


@pytest.mark.parametrize("reward", ["task", pytest.param("prepared", marks=pytest.mark.slow)])
def test_the_whole_way(tmp_path, reward):
    """Start, pairs, reward model and the run itself, with sizes of a few seconds."""
    cfg = composed(
        "objective=dpo", "data=onpolicy", "callbacks=minimal", "data.rounds=2", "task.train_prompts=80",
        "task.validation_prompts=8", "data.prompts_per_round=4", "data.batch_size=4", "model.layers=1",
        f"reward={reward}", cache=tmp_path / "cache",
    )  # fmt: skip
    small = ["trainer.max_steps=3", "task.train_prompts=128", "task.validation_prompts=4"]
    cfg.task.prepare.start.overrides += small
    cfg.task.prepare.reward.overrides += ["trainer.max_steps=3", "data.batch_size=16"]
    outcome = run_job(cfg, tmp_path / "run")
    assert outcome.status == "finished", outcome.reason
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 2 and summary["reward_queries"] == 32
    assert summary["reward_final"] == pytest.approx(-summary["length_final"])
    folders = {
        p.name.rsplit("_", 1)[0] for p in (tmp_path / "cache" / "prepared").iterdir() if p.is_dir()
    }
    learned = {"min_length_reward_model"} if reward == "prepared" else set()
    assert folders == {"word_start_sft", "min_length_generate", *learned}
    assert plan(OmegaConf.load(tmp_path / "run" / "config.yaml")) == []
    first = json.loads((tmp_path / "run" / "samples.jsonl").read_text().splitlines()[0])
    assert first["reward_source"].startswith("learned@" if learned else "min_length@")
    assert len(Path(cfg.task.pairs).read_text().splitlines()) == 81  # with one that is measured
