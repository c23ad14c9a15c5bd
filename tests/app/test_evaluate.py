"""``lit-pref evaluate``: the numbers, the files, and what is refused."""

import json
import subprocess
import sys

import pytest

from lit_pref.errors import Refusal


def result(folder):
    return json.loads((folder / "evaluation.json").read_text())


def test_a_run_gives_the_numbers_of_its_own_validation(bandit_run, tmp_path, command):
    code, out, _ = command("evaluate", "run", "responses=1", "output=ev")
    assert code == 0
    found, summary = result(tmp_path / "ev"), json.loads((bandit_run / "summary.json").read_text())
    metrics = found["metrics"]
    assert metrics["reward"]["mean"] == pytest.approx(summary["reward_final"], abs=1e-9)
    assert metrics["kl"]["mean"] == pytest.approx(summary["kl_final"], abs=1e-6)
    assert metrics["entropy"]["mean"] == pytest.approx(summary["entropy_final"], abs=1e-6)
    assert found["step"] == 3
    assert found["reference"] == "initial policy"
    assert found["checkpoint"].endswith("last.ckpt")
    assert "win_rate" in out and "evaluation.json" in out
    assert "preference_accuracy" in found["not_measured"]  # one reference response: no pair


def test_wins_and_pairs_are_those_of_the_written_samples(bandit_run, tmp_path, command):
    assert command("evaluate", "run", "responses=2", "output=ev")[0] == 0
    found = result(tmp_path / "ev")["metrics"]
    rewards = {}
    for name in ("samples", "reference_samples"):
        lines = (tmp_path / "ev" / f"{name}.jsonl").read_text().splitlines()
        rewards[name] = [[r["reward"] for r in json.loads(x)["responses"]] for x in lines]
    mine, theirs = rewards["samples"], rewards["reference_samples"]
    assert len(mine) == len(theirs) == 100
    wins = [
        sum((a > b) + 0.5 * (a == b) for a in m for b in t) / 4
        for m, t in zip(mine, theirs, strict=True)
    ]
    assert found["win_rate"]["mean"] == pytest.approx(sum(wins) / 100)
    low, high = found["win_rate"]["interval"]
    assert 0 <= low < found["win_rate"]["mean"] < high <= 1
    means = [sum(m) / 2 for m in mine]
    assert found["reward"]["mean"] == pytest.approx(sum(means) / 100)
    assert found["preference_accuracy"]["pairs"] == sum(max(t) > min(t) for t in theirs)
    assert 0.4 < found["preference_accuracy"]["mean"] <= 1  # three steps towards the reward


def test_without_weights_it_is_refused_and_without_a_run_there_is_no_reference(
    bandit_run, tmp_path, command
):
    assert command("export", "run", "output=again", "checkpoint=best")[0] == 0
    for file in (bandit_run / "checkpoints").iterdir():
        file.unlink()
    (bandit_run / "export").rename(tmp_path / "old")
    code, _, err = command("evaluate", "run")
    assert code == 2 and "no checkpoint and no export/" in err
    # the run's model before training, without the run: model= alone, no reference
    assert command("evaluate", "responses=1", "output=ev")[0] == 0
    found = result(tmp_path / "ev")
    assert found["reference"] is None
    assert found["not_measured"].keys() >= {"kl", "win_rate"}
    assert found["metrics"]["reward"]["mean"] == pytest.approx(
        json.loads((bandit_run / "summary.json").read_text())["reward_start"], abs=1e-9
    )


def test_export_inside_a_run_stands_for_the_run(bandit_run, tmp_path, command):
    assert command("evaluate", "run", "responses=1", "output=a")[0] == 0
    assert command("evaluate", "run/export", "responses=1", "output=b")[0] == 0
    a, b = result(tmp_path / "a"), result(tmp_path / "b")
    assert b["checkpoint"].endswith("export")
    assert a["metrics"] == b["metrics"]


def test_another_reward_and_no_kl_at_another_temperature(bandit_run, tmp_path, command):
    arguments = ["run", "reward=length", "sampler.temperature=0", "responses=1", "output=ev"]
    assert command("evaluate", *arguments)[0] == 0
    found = result(tmp_path / "ev")
    assert found["metrics"]["reward"]["mean"] == -1.0  # nine tokens of nine
    assert found["metrics"]["win_rate"]["mean"] == 0.5  # all tie
    assert "temperature" in found["not_measured"]["kl"]
    assert "entropy" not in found["metrics"]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    from lit_pref.policies import HFPolicy, tiny

    folder = tmp_path_factory.mktemp("models") / "tiny"
    HFPolicy(tiny()).load().save_pretrained(str(folder))
    return folder


def test_a_model_folder_on_pairs_with_a_reference(tiny_folder, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b" * 30} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "val.jsonl").write_text('{"prompt": "hello"}\n{"prompt": "you"}\n')
    arguments = [
        tiny_folder, "task.pairs=pairs.jsonl", "task.validation=val.jsonl", "reward=length",
        "sampler.max_new_tokens=4", "responses=2", "max_pairs=3",
    ]  # fmt: skip
    assert command("evaluate", *arguments, "output=alone")[0] == 0
    found = result(tmp_path / "alone")["metrics"]
    # one random token is more likely than thirty
    assert found["preference_accuracy"]["mean"] == 1.0
    assert found["preference_accuracy"]["pairs"] == 3
    assert "kl" not in found
    same = f"reference_model={tiny_folder}"
    assert command("evaluate", *arguments, same, "output=same")[0] == 0
    found = result(tmp_path / "same")["metrics"]
    assert found["kl"]["mean"] == pytest.approx(0.0, abs=1e-5)
    assert found["preference_accuracy"]["mean"] == 0.5  # all ties
    assert found["preference_accuracy"]["compares"] == "log-ratios to the reference"


def test_pairs_of_scored_responses(tiny_folder, tmp_path, monkeypatch, command):
    """What objectives make pairs of is measured too; equal rewards prefer nothing."""
    monkeypatch.chdir(tmp_path)
    texts = ["a", "b" * 30, "c" * 20]
    rewards = [[0.1, 0.9, 0.5], [0.9, 0.1, 0.1], [0.5, 0.5, 0.5]]
    rows = [
        {"prompt": f"p{i}", "completions": texts, "rewards": some} for i, some in enumerate(rewards)
    ]
    (tmp_path / "scored.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "val.jsonl").write_text('{"prompt": "hello"}\n')
    code, _, err = command(
        "evaluate", tiny_folder, "task.pairs=scored.jsonl", "task.validation=val.jsonl",
        "reward=length", "sampler.max_new_tokens=4", "responses=1", "output=scored",
    )  # fmt: skip
    assert code == 0, err
    found = result(tmp_path / "scored")["metrics"]["preference_accuracy"]
    # one random token is more likely than thirty: the second row is right, the first is not
    assert (found["pairs"], found["mean"]) == (2, 0.5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing_here"], "expected a run directory"),
        (["run", "other"], "expected one run directory or model folder, got 2"),
        (["run", "responses=0"], "responses must be a whole number from 1"),
        (["run", "respnses=3"], "Did you mean responses?"),
        (["run", "task.rewrd=r2"], "Did you mean task.reward"),
        (["run", "reward=lenght"], "Did you mean length?"),
        (["run", "reward=regex"], "reward.pattern must be given"),
        (["run", "checkpoint=first"], "this run has last, best, export"),
        (["run", "model=tiny"], "Use model=gpt_nano"),
        (["run", "-m"], "there is no such flag"),
        (["run", "output=/dev/null/x"], "cannot be written"),
        (["reference_model=initial"], "no run was given"),
    ],
)
def test_refusals(bandit_run, command, arguments, words):
    code, _, err = command("evaluate", *arguments)
    assert code == 2
    assert err.count("Refused:") == 1 and "Traceback" not in err
    assert words in err


def test_damaged_configuration_is_a_refusal(bandit_run, command):
    (bandit_run / "config.yaml").write_text("task: [")
    code, _, err = command("evaluate", "run")
    assert code == 2 and "config.yaml cannot be read" in err


def test_cfg_shows_the_runs_own_parts(bandit_run, command):
    code, out, _ = command("evaluate", "run", "--cfg", "job")
    assert code == 0
    assert "TokenBandit" in out and "reference_model: null" in out


@pytest.mark.parametrize("name", ["evaluate", "generate", "export", "report"])
def test_help_is_there_with_examples_and_without_torch(name):
    check = (
        f"import sys; sys.argv = ['x', '--help']; import lit_pref.app.{name} as m; m.main(); "
        "assert 'torch' not in sys.modules"
    )
    out = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    assert f"lit-pref {name} " in out.stdout and "Example" in out.stdout


@pytest.mark.parametrize("name", ["evaluate", "generate"])
def test_every_task_model_and_reward_composes(name):
    from omegaconf import OmegaConf

    from lit_pref.app.preflight import groups_of
    from lit_pref.app.request import parse_request

    given = {
        "model=hf": ["model.path=x"],
        "reward=regex": ["reward.pattern=x"],
        "reward=keyword": ["reward.words=[x]"],
        "reward=callable": ["reward.function=math.sqrt"],
        "reward=compare": ["reward.function=math.hypot"],
        "reward=sum": ["reward.sources=[]", "reward.weights=[]"],
        "reward=classifier": ["reward.path=x"],
        "reward=learned": ["reward.path=x"],
        "reward=judge": ["reward.model=x", "reward.url=x"],
        "reward=remote": ["reward.url=x"],
    }
    groups = groups_of([])
    choices = [f"{g}={o}" for g in ("task", "model", "reward", "sampler") for o in groups[g]]
    assert set(given) <= set(choices) and len(choices) > 20
    for choice in choices:
        request = parse_request(name, [choice, *given.get(choice, [])])
        group, option = choice.split("=")
        found = OmegaConf.to_container(request.cfg, resolve=True)[group]
        assert found["name"] == option, choice
    for choice in set(given) - {"reward=sum"}:
        with pytest.raises(Refusal, match="must be given"):
            parse_request(name, [choice])


def test_a_value_keeps_its_type_and_a_path_may_have_an_equals_sign(bandit_run, tmp_path):
    from lit_pref.app.request import parse_request

    bandit_run.rename(tmp_path / "0_seed=1")
    request = parse_request("evaluate", ["0_seed=1", "reward=regex", "reward.pattern='^a b$'"])
    assert str(request.source.run) == "0_seed=1"
    assert request.cfg.reward.pattern == "^a b$"
    assert request.cfg.task.reward == "r1"
