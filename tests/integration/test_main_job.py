"""The main job: on-policy DPO on the paper's bandit learns, and leaves what it promises."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from tests_integration_support import failing_reward, nan_reward, short_reward

SMALL = ["data.rounds=3", "callbacks=minimal"]


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_dpo_learns_the_bandit(job, seed):
    done = job("objective=dpo", "data=onpolicy", f"seed={seed}", "callbacks=minimal")
    assert done.outcome.exit_code == 0
    summary = done.summary
    assert summary["reward_start"] < 0.1
    assert summary["reward_final"] > 0.8
    assert summary["status"] == "finished"
    assert summary["steps"] == summary["rounds"] == summary["passes"] == 100
    assert summary["samples"] == summary["reward_queries"] == 10_000
    assert summary["eval_queries"] == 200
    assert summary["kl_final"] > 0


def test_reinforce_learns_the_bandit(job):
    done = job("objective=reinforce", "data=onpolicy", "seed=11", "callbacks=minimal")
    assert done.summary["reward_start"] < 0.1
    assert done.summary["reward_final"] > 0.8


def test_offline_dpo_does_what_the_paper_says(job):
    """Offline DPO, beta 0.1, lr 1e-3, ten prompts, 100 steps: about 0.16."""
    done = job("objective=dpo", "data=offline", "seed=11", "callbacks=minimal")
    assert 0.08 < done.summary["reward_final"] < 0.3
    assert done.summary["samples"] == 100


def test_small_models_use_one_thread(job, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    job("objective=dpo", "data=onpolicy", "data.rounds=1", "callbacks=minimal")
    job("objective=dpo", "data=onpolicy", "data.rounds=1", "callbacks=minimal", "model.threads=2")
    assert 1 in seen
    assert 2 in seen


class Page(HTMLParser):
    """The data block, and every address that a browser would ask for."""

    def __init__(self):
        super().__init__()
        self.data, self.addresses, self._in_data = "", [], False

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self._in_data = tag == "script" and given.get("id") == "data"
        self.addresses += [v for k, v in attrs if k in ("src", "href") and v]

    def handle_data(self, data):
        if self._in_data:
            self.data += data

    def handle_endtag(self, tag):
        self._in_data = False


def test_the_run_directory_is_complete(job):
    done = job("objective=dpo", "data=onpolicy", *SMALL, "seed=5")
    for name in (
        "config.yaml", "environment.json", "metrics.csv", "samples.jsonl", "validation.jsonl",
        "summary.json", "report.html", "export/config.json", "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
    ):  # fmt: skip
        assert (done.folder / name).exists(), name
    assert not list(done.folder.rglob("*.part"))
    wanted = {
        "objective", "data", "task", "model", "seed", "steps", "rounds", "passes", "samples",
        "reward_queries", "eval_queries", "reward_start", "reward_final", "kl_final",
        "wall_seconds", "status",
    }  # fmt: skip
    assert wanted <= set(done.summary)
    line = done.lines("samples.jsonl")[0]
    assert set(line) == {
        "prompt_id", "prompt", "prompt_ids", "round", "policy_version", "source", "file", "row",
        "sampling", "reward_source", "responses",
    }  # fmt: skip
    assert set(line["responses"][0]) == {
        "text", "ids", "reward", "label", "rank", "behaviour", "behaviour_logps", "finished",
    }  # fmt: skip
    assert str(done.folder) not in (done.folder / "samples.jsonl").read_text()
    page = Page()
    page.feed((done.folder / "report.html").read_text())
    assert len(json.loads(page.data)["rows"]) == len(done.metrics) == 4
    assert not [a for a in page.addresses if re.match(r"(https?:)?//", a)]
    packages = json.loads((done.folder / "environment.json").read_text())["packages"]
    assert packages["torch"] == torch.__version__


def test_the_same_seed_gives_the_same_run(job):
    first, second = (job("objective=dpo", *SMALL, "seed=7") for _ in range(2))
    other = job("objective=dpo", *SMALL, "seed=8")
    for name in ("metrics.csv", "samples.jsonl", "export/model.safetensors"):
        same = (first.folder / name).read_bytes()
        assert same == (second.folder / name).read_bytes()
        assert same != (other.folder / name).read_bytes()


def test_export_loads_and_is_the_policy(job):
    from transformers import AutoModelForCausalLM

    done = job("objective=dpo", *SMALL)
    model = AutoModelForCausalLM.from_pretrained(done.folder / "export")
    saved = torch.load(done.folder / "checkpoints" / "last.ckpt", weights_only=True)
    prefix = "policy.model."
    weights = {k.removeprefix(prefix): v for k, v in saved["state_dict"].items()}
    assert all(k.startswith(prefix) for k in saved["state_dict"])  # no frozen model in it
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_text_with_the_tiny_model(job):
    done = job("task=text", "model=tiny", "reward=length", "data.rounds=2", "seed=1",
               "sampler.max_new_tokens=16", "data.reuse=2", "data.batch_size=4")  # fmt: skip
    assert done.outcome.exit_code == 0, done.outcome.reason
    assert done.summary["steps"] == 2 * 2 * 4
    assert len(done.lines("samples.jsonl")) == 32
    prompts = {line["prompt_id"] for line in done.lines("samples.jsonl")}
    held_out = {line["prompt_id"] for line in done.lines("validation.jsonl")}
    assert len(held_out) == 16
    assert not prompts & held_out


def test_offline_pairs_of_a_file(job):
    from pathlib import Path

    pairs = Path(__file__).parents[2] / "docs" / "examples" / "pairs.jsonl"
    done = job("task=text", "model=tiny", "reward=length", "data=offline", f"task.pairs={pairs}",
               "sampler.max_new_tokens=8", "data.reuse=3", "callbacks=minimal")  # fmt: skip
    assert done.outcome.exit_code == 0, done.outcome.reason
    dropped = [r["data/dropped_pairs"] for r in done.metrics if r.get("data/dropped_pairs")]
    assert [float(n) for n in dropped] == [0.0]  # one round
    rows = [r for r in done.metrics if r.get("rewards/accuracies")]
    per_pass = len(rows) // 3
    first = sum(float(r["rewards/accuracies"]) for r in rows[:per_pass]) / per_pass
    last = sum(float(r["rewards/accuracies"]) for r in rows[-per_pass:]) / per_pass
    assert last > max(first, 0.7)
    assert done.summary["reward_queries"] == 0
    assert done.lines("samples.jsonl") == []  # nothing was generated but validation samples


def test_a_run_in_the_folder_of_another_says_that_it_replaces_it(job, caplog):
    first = job("objective=dpo", *SMALL, "data.rounds=1")
    assert "held another run" not in caplog.text
    job("objective=dpo", *SMALL, "data.rounds=1", folder=first.folder)
    assert f"{first.folder} held another run (finished, 1 steps)" in caplog.text


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (failing_reward, ["ZeroDivisionError", "failing_reward"]),
        (nan_reward, ["finite", "nan_reward"]),
        (short_reward, ["expected", "short_reward"]),
    ],
)
def test_a_reward_that_fails_stops_the_run_and_keeps_the_round(job, capsys, function, words):
    path = f"tests_integration_support.{function.__name__}"
    done = job("objective=dpo", *SMALL, "reward=callable", f"reward.function={path}")
    assert done.outcome.exit_code == 1
    assert done.summary["status"] == "failed"
    for word in (*words, "prompt", "response"):
        assert word in done.summary["reason"]
    kept = done.lines("failed_round.jsonl")
    assert kept
    assert all(r["ids"] for line in kept for r in line["responses"])
    assert (done.folder / "report.html").exists()
    said = capsys.readouterr().err
    assert "the round that failed. There is no checkpoint" in said


def test_steps_with_non_finite_gradients_are_skipped_then_stop_the_run(job, capsys):
    """beta = 1e38 overflows: every gradient is not finite, no weight may change."""
    overrides = ["objective=dpo", "objective.beta=3e38", "data.rounds=6", "callbacks=minimal"]
    done = job(*overrides, "optimizer.max_skipped=3")
    assert done.outcome.exit_code == 1
    assert "3" in done.summary["reason"]
    assert "optimizer.lr" in done.summary["reason"]
    assert done.summary["steps"] == 4
    again = f"last checkpoint with: lit-pref train resume={done.folder}"
    assert again in capsys.readouterr().err
    # Evaluated before training alone: that is no end.
    assert done.summary["reward_start"] is not None and done.summary["reward_final"] is None
    assert done.summary["kl_final"] is None
    patient = job(*overrides, "optimizer.max_skipped=100")
    assert patient.outcome.exit_code == 0
    assert float(patient.metrics[-1]["skipped_steps"]) == 6
    assert patient.summary["kl_final"] == 0


def test_every_module_is_in_training_mode_from_the_first_step(job, monkeypatch, tmp_path):
    """Saved models load in eval mode, in which transformers keeps all activations in spite of
    model.gradient_checkpointing=true; nothing that evaluates sets the mode here."""
    from pathlib import Path

    from lit_pref.policies import HFPolicy, tiny

    HFPolicy(tiny()).load().save_pretrained(str(tmp_path / "model"))
    pairs = Path(__file__).parents[2] / "docs" / "examples" / "pairs.jsonl"
    modes, forward = [], HFPolicy.forward

    def watched(self, *args, **kwargs):
        if torch.is_grad_enabled():
            modes.append(all(m.training for m in self.modules()))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(HFPolicy, "forward", watched)
    done = job("objective=dpo", "data=offline", "task=text", "model=hf", f"model.path={tmp_path}/model",
               "data.batch_size=4", "callbacks=minimal", "~callbacks.evaluation", "trainer.max_steps=2", f"task.pairs={pairs}",
               "model.gradient_checkpointing=true", "export=false")  # fmt: skip
    assert done.outcome.exit_code == 0, done.summary["reason"]
    assert modes == [True, True]


def test_schedule_and_optimizer_come_from_the_configuration(job):
    done = job("objective=dpo", "data.rounds=5", "callbacks=minimal", "scheduler=linear",
               "scheduler.warmup_steps=1", "optimizer=sgd", "optimizer.lr=0.5",
               "optimizer.clip_norm=null", "trainer.max_steps=4")  # fmt: skip
    rates = [float(r["learning_rate"]) for r in done.metrics if r.get("learning_rate")]
    # one step of warm-up at 1/2, then from 1 down to 0 over the 3 that are left
    assert rates == pytest.approx([0.25, 0.5, 0.5 * 2 / 3, 0.5 / 3])
    assert done.summary["steps"] == 4


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_and_gradient_checkpointing(job, precision):
    done = job("task=text", "model=tiny", "data.rounds=1", "callbacks=minimal", "reward=callable",
               "reward.function=tests_integration_support.distinct_reward", "sampler.max_new_tokens=6", "data.batch_size=4", f"trainer.precision={precision}",
               "model.gradient_checkpointing=true")  # fmt: skip
    assert done.outcome.exit_code == 0, done.outcome.reason
    norms = [float(r["grad_norm"]) for r in done.metrics if r.get("grad_norm")]
    assert len(norms) == 4
    assert all(0 < n < 1e6 for n in norms)


def test_tensorboard_besides_the_csv(job):
    pytest.importorskip("tensorboard", reason="extra [tensorboard] is not installed")
    done = job("objective=dpo", *SMALL, "logger=tensorboard")
    assert done.outcome.exit_code == 0, done.outcome.reason
    assert list(done.folder.rglob("events.out.tfevents*"))


def test_missing_logger_names_the_extra(job):
    try:
        import wandb  # noqa: F401
    except ImportError:
        done = job("objective=dpo", *SMALL, "logger=wandb")
        assert done.outcome.exit_code == 2
        assert '".[wandb]"' in done.outcome.reason
    else:
        pytest.skip("wandb is installed here, so nothing is missing")


def test_negative_weight_zero_never_pushes_down(job):
    """a = 0 removes what lowers log-probs: the rejected fall less, the loss formula is the same."""
    plain = job("objective=dpo", "data=offline", "data.reuse=30", "callbacks=minimal")
    muted = job("objective=dpo", "data=offline", "data.reuse=30", "callbacks=minimal",
                "objective.negative_weight=0")  # fmt: skip
    assert float(plain.metrics[1]["loss"]) == float(muted.metrics[1]["loss"])
    last = [float(x.metrics[-1]["rewards/rejected"]) for x in (plain, muted)]
    assert last[0] < 5 * last[1] < 0
