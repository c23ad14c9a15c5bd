"""``lit-pref bench``: phases that add up, numbers that are counted right, nothing left behind."""

import time

import pytest
import torch

from lit_pref.app import bench_job
from lit_pref.app.bench_job import Phases
from lit_pref.rewards.scoring import Scoring

SMALL = ["objective=dpo", "data=onpolicy", "data.prompts_per_round=2", "data.batch_size=2",
         "data.responses_per_prompt=3", "+task.validation_prompts=4", "task.train_prompts=3"]  # fmt: skip


def test_a_phase_inside_another_is_taken_off_it():
    class Work:
        def outer(self):
            time.sleep(0.02)
            self.inner()

        def inner(self):
            time.sleep(0.05)

    phases, work = Phases(), Work()
    phases.wrap(work, "inner", "inner")
    phases.wrap(work, "outer", "outer")
    work.outer()
    assert phases.seconds == {}  # not counting yet
    phases.counting = True
    work.outer()
    assert 0.05 <= phases.seconds["inner"]
    assert phases.seconds["outer"] >= 0.02
    assert phases.seconds["outer"] < phases.seconds["inner"]


def test_the_table(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = command("bench", "steps=3", *SMALL)
    assert code == 0, err
    rows = {line[:24].strip(): line[25:] for line in out.splitlines() if line.strip()}
    assert rows["steps measured"].startswith("2 in ")
    for name in (
        "generate", "reward", "annotate", "forward and backward", "optimizer", "logging",
    ):  # fmt: skip
        assert "ms a step" in rows[name]
    shares = [float(v.split(", ")[1].rstrip("%")) for k, v in rows.items()
              if "ms a step" in v and "beside" not in k]  # fmt: skip
    assert sum(shares) == pytest.approx(100, abs=0.5)
    # 90,192 parameters in float32; Adam keeps two numbers for each
    assert rows["weights"] == rows["reference"] == rows["gradients"] == "0.4 MiB"
    assert rows["optimizer state"] == "0.7 MiB"
    assert list(tmp_path.iterdir()) == []


def slow(prompts, first, second):
    time.sleep(0.05)
    return [1.0] * len(prompts)


def ties(prompts, first, second):
    return [0.5] * len(prompts)


def test_steps_without_anything_to_train_on(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(
        "bench", "steps=2", *SMALL, "reward=compare", f"reward.function={__name__}.ties"
    )
    assert code == 0, err
    assert "useful positions         none" in out


def test_waiting_for_an_oracle_is_a_phase_of_its_own(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finish = Scoring.finish
    code, out, err = command(
        "bench", "steps=3", *SMALL, "reward=compare", f"reward.function={__name__}.slow"
    )
    assert code == 0, err
    assert Scoring.finish is finish
    rows = {line[:24].strip(): line[25:] for line in out.splitlines() if line.strip()}
    # a call for each of 2 prompts; the last begins when sampling is over
    spent = [float(rows[name].split(" ms")[0]) for name in ("reward", "reward (beside others)")]
    assert spent[1] >= 2 * 50 and spent[0] >= 40


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)]
)
def test_utilisation_is_of_products_in_the_precision_of_the_run(
    command, tmp_path, monkeypatch, precision, dtype
):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(bench_job, "_matmul_rate", lambda device, kind: asked.append(kind) or 1e9)
    code, out, err = command("bench", "steps=2", *SMALL, f"trainer.precision={precision}")
    assert code == 0, err
    assert asked == [dtype] and "% of 1 GFLOP/s" in out


def test_a_policy_that_is_no_language_model(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ["data.prompts_per_round=2", "data.batch_size=2"]
    code, out, err = command(
        "bench", "steps=2", "objective=dpo", "data=onpolicy", "task=contextual_bandit", *few
    )
    assert code == 0, err
    assert "counted for language models alone" in out and "ms a step" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["steps=1"], "whole number from 2"), (["objective=dop"], "there is no such option")],
)
def test_refusals(command, arguments, words):
    code, _, err = command("bench", *arguments)
    assert code == 2 and words in err
