"""Rewards in whole runs: oracles, noise, remote services, learned rewards, offline sampling."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lit_pref.metrics.glossary import GLOSSARY

SMALL = ("data.prompts_per_round=4", "data.responses_per_prompt=3", "data.batch_size=2",
         "data.rounds=2", "export=false", "seed=7")  # fmt: skip


@pytest.fixture
def url():
    pytest.importorskip("httpx", reason="extra [remote] is not installed")
    script = Path(__file__).parents[1] / "rewards" / "misbehaving_server.py"
    process = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    process.stdin.close()
    process.wait(timeout=10)
    process.stdout.close()


@pytest.mark.parametrize("objective", ["dpo", "rwr", "kto"])
def test_noisy_preferences_train_and_the_true_reward_validates(job, objective):
    done = job(f"objective={objective}", *SMALL, "reward=noisy", "reward.flip=0.3")
    assert done.outcome.exit_code == 0, done.outcome.reason
    (first, *_) = done.lines("samples.jsonl")
    assert [c[:2] for c in first["comparisons"]] == [[0, 1], [0, 2], [1, 2]]
    assert all(0 <= r["reward"] <= 1 for r in first["responses"])
    rounds = [r for r in done.metrics if r["round/reward_accuracy"]]
    assert len(rounds) == 2
    assert all(0 <= float(r["round/reward_accuracy"]) <= 1 for r in rounds)
    assert all(0 < float(r["round/true_reward"]) < 1 for r in rounds)
    assert done.summary["reward_final"] is not None


def test_a_remote_reward_in_a_run(job, url, tmp_path):
    remote = ("reward=remote", f"reward.url='{url}/run/500,ok'", "reward.backoff=0.01",
              f"reward.cache={tmp_path}/cache")  # fmt: skip
    done = job("objective=dpo", *SMALL, *remote)
    assert done.outcome.exit_code == 0, done.outcome.reason
    rounds = [r for r in done.metrics if r["reward/requests"]]
    assert sum(float(r["reward/retries"]) for r in rounds) == 1
    again = job("objective=dpo", *SMALL, *remote)
    rounds = [r for r in again.metrics if r["reward/requests"]]
    assert sum(float(r["reward/requests"]) for r in rounds) == 0  # all answers were kept
    assert again.lines("samples.jsonl") == done.lines("samples.jsonl")


def test_a_remote_reward_that_fails_stops_the_run_and_keeps_the_round(job, url):
    done = job("objective=dpo", *SMALL, "reward=remote", f"reward.url='{url}/fails/ok,ok,html'",
               "reward.retries=0", "reward.concurrency=1", "reward.cache=null")  # fmt: skip
    assert done.outcome.exit_code == 1
    for words in ("reward 'remote'", "expected JSON", "prompt (id", "response:"):
        assert words in done.summary["reason"]
    kept = done.lines("failed_round.jsonl")
    assert kept
    scored = [line for line in kept if line["responses"][0]["reward"] is not None]
    assert [line["reward_source"] for line in scored] == ["remote@1"] * 2


def test_a_judge_in_a_run(job, url):
    done = job("objective=ipo", *SMALL, "task=text", "model=tiny", "sampler.max_new_tokens=6",
               "callbacks=minimal", "reward=judge", "reward.model=m", f"reward.url={url}/judge/ok",
               "reward.opponents=1", "reward.cache=null")  # fmt: skip
    assert done.outcome.exit_code == 0, done.outcome.reason
    for line in done.lines("samples.jsonl"):
        lengths = [len(r["text"]) for r in line["responses"]]
        for i, j, p in line["comparisons"]:  # the server prefers the longer one
            assert p == (0.5 if lengths[i] == lengths[j] else float(lengths[i] > lengths[j]))
    assert set(done.metrics[0]) <= set(GLOSSARY)
    assert {"reward/undecided", "reward/unclear", "reward/retries"} <= set(done.metrics[0])
    assert done.summary["reward_final"] is None  # an oracle measures nothing by itself


def test_an_oracle_with_one_response_is_refused(job):
    done = job("objective=sft", *SMALL, "reward=noisy", "data.responses_per_prompt=1")
    assert done.outcome.exit_code == 2
    assert "set it to 2 or more" in done.outcome.reason


def test_a_learned_reward_is_logged_beside_the_true_one(job):
    model = job("objective=reward_model", "data=offline", "data.reuse=3", "task.offline_prompts=20",
                "data.responses_per_prompt=4", "seed=7")  # fmt: skip
    assert model.outcome.exit_code == 0, model.outcome.reason
    done = job("objective=reinforce", *SMALL, "reward=learned", f"reward.path={model.folder}")
    assert done.outcome.exit_code == 0, done.outcome.reason
    rounds = [r for r in done.metrics if r["round/reward_accuracy"]]
    assert len(rounds) == 2
    for row in rounds:
        held_out = float(row["round/reward_held_out_accuracy"])
        assert held_out == pytest.approx(model.summary["accuracy_final"])
        assert 0 < float(row["round/true_reward"]) < 1
        assert float(row["round/reward"]) != float(row["round/true_reward"])
    assert set(done.metrics[0]) <= set(GLOSSARY)
    # 2 validations and 2 rounds of 12 true rewards
    assert done.summary["eval_queries"] >= 24


@pytest.mark.parametrize(("task", "objective"), [("sentiment", "dpo"), ("instructions", "pref_ft")])
def test_offline_data_of_a_text_task_is_sampled_once(job, task, objective):
    if task == "sentiment":
        pytest.importorskip("vaderSentiment", reason="extra [sentiment] is not installed")
    done = job(f"objective={objective}", "data=offline", f"task={task}", "model=tiny",
               "task.offline_prompts=8", "data.responses_per_prompt=2", "data.batch_size=4",
               "data.reuse=2", "sampler.max_new_tokens=8", "task.validation_prompts=2",
               "callbacks=minimal", "export=false")  # fmt: skip
    assert done.outcome.exit_code == 0, done.outcome.reason
    samples = done.lines("samples.jsonl")
    assert len(samples) == 8
    assert {s["source"] for s in samples} == {"offline"}
    assert {s["file"] for s in samples} == {f"lit_pref/tasks/files/{task}.jsonl"}
    assert done.summary["samples"] == 16
    assert done.summary["steps"] == 4
    json.dumps(samples)
