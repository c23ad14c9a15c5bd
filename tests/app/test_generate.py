"""``lit-pref generate``: prompts in, ``samples.jsonl`` out."""

import json
from typing import Any

import pytest

from lit_pref.types import Group


def read(path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_responds_to_all_prompts_with_provenance(bandit_run, tmp_path, command):
    code, out, _ = command("generate", "run", "responses=2", "output=out.jsonl")
    assert code == 0 and "out.jsonl" in out
    lines = read(tmp_path / "out.jsonl")
    assert [x["prompt_id"] for x in lines] == list(range(100))
    assert {x["policy_version"] for x in lines} == {3}
    assert lines[0].keys() == read(bandit_run / "samples.jsonl")[0].keys()
    for line in lines:
        Group.from_state(line)
        assert len(line["responses"]) == 2
        assert all(r["reward"] is not None for r in line["responses"])
    assert not (tmp_path / "out.jsonl.part").exists()


def test_the_same_command_gives_the_same_file_and_a_seed_another(bandit_run, tmp_path, command):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert command("generate", "run", f"seed={seed}", f"output={name}.jsonl")[0] == 0
    a, b, c = ((tmp_path / f"{n}.jsonl").read_bytes() for n in "abc")
    assert a == b != c


def test_every_row_of_a_prompt_file_in_order(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    rows = ["two", "one", "two", "three"]
    text = "".join(json.dumps({"prompt": r}) + "\n" for r in rows)
    (tmp_path / "my.jsonl").write_text(text)
    arguments = ["model=tiny", "task.prompts=my.jsonl", "sampler.max_new_tokens=3"]
    assert command("generate", *arguments, "output=folder")[0] == 0
    lines = read(tmp_path / "folder" / "samples.jsonl")
    assert [x["prompt"] for x in lines] == rows
    assert [(x["file"], x["row"]) for x in lines] == [("my.jsonl", i) for i in (1, 2, 3, 4)]
    assert all(r["reward"] is None for x in lines for r in x["responses"])
    first, third = lines[0]["responses"][0], lines[2]["responses"][0]
    assert first["ids"] != third["ids"]  # the same text in two rows gets two responses
    arguments += ["reward=length", "output=scored.jsonl"]
    assert command("generate", *arguments)[0] == 0
    scored = read(tmp_path / "scored.jsonl")
    for before, after in zip(lines, scored, strict=True):
        response = after["responses"][0]
        assert response["ids"] == before["responses"][0]["ids"]
        assert response["reward"] == pytest.approx(-len(response["ids"]) / 3)


def test_a_failing_reward_leaves_what_was_written(bandit_run, tmp_path, monkeypatch, command):
    (tmp_path / "my_rewards.py").write_text(
        "def bad(prompts, responses):\n    raise RuntimeError('out of order')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["run", "reward=callable", "reward.function=my_rewards.bad", "output=o.jsonl"]
    code, _, err = command("generate", *arguments)
    assert code == 1
    assert "Failed: reward" in err and "out of order" in err and "Traceback" not in err
    assert not (tmp_path / "o.jsonl").exists()


def test_ctrl_c_exits_with_130(bandit_run, monkeypatch, command):
    from lit_pref.sampling.native import NativeSampler

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(NativeSampler, "sample", stop)
    code, _, err = command("generate", "run", "output=o.jsonl")
    assert code == 130 and "Interrupted" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "output=there.jsonl"], "there.jsonl is there already"),
        (["run", "responses=x"], "responses must be a whole number"),
        (["run", "task.prompts=my.jsonl"], "there is no such key"),  # a bandit has no files
        (["model=tiny", "task.prompts=missing.jsonl"], "missing.jsonl"),
        (["run", "~seed"], "nothing can be removed"),
        (["run", "output=/dev/null/o.jsonl"], "cannot be written"),
    ],
)
def test_refusals(bandit_run, tmp_path, command, arguments, words):
    (tmp_path / "there.jsonl").write_text("")
    code, _, err = command("generate", *arguments)
    assert code == 2
    assert err.count("Refused:") == 1 and words in err
