"""Samples of an earlier run, trained on again; files that are not what they should be."""

import json

import pytest
from source_runs import dpo, lines, same, source, train

from lit_pref.data import ReplayDataModule
from lit_pref.data.replay_file import read_samples
from lit_pref.objectives import REINFORCE, RWR, RewardModel
from lit_pref.policies import HFPolicy, gpt_nano
from lit_pref.tasks import TokenBandit
from lit_pref.types import Refusal


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """The folder of a run of two rounds of four prompts, three responses each."""
    folder = tmp_path_factory.mktemp("earlier")
    train(source("onpolicy"), folder)
    return folder


def replay(path, **options):
    return source("replay", path=path, **{"prompts_per_round": "all", "rounds": 1, **options})


def test_it_trains_another_objective_and_asks_nothing(tmp_path, earlier):
    data = replay(earlier / "samples.jsonl", batch_size=4)
    module = RWR(HFPolicy(gpt_nano()))
    module.policy.load()
    before = [p.detach().clone() for p in module.policy.parameters()]
    after, watch, _ = train(data, tmp_path, module)
    assert not same(before, after)
    assert data.counters == {"samples": 0, "reward_queries": 0, "eval_queries": 0}
    assert lines(tmp_path) == []
    groups = watch.rounds[0].groups
    assert len(groups) == 8
    written = lines(earlier)
    assert sorted(group.origin["row"] for group in groups) == list(range(1, 9))
    for group in groups:
        there = written[group.origin["row"] - 1]
        assert group.prompt.id == there["prompt_id"] and group.round == there["round"]
        assert group.source == "replay"
        assert group.policy_version == there["policy_version"] == group.round * 4
        assert group.sampling == there["sampling"]
        assert group.reward_source == there["reward_source"]
        assert [r.to_json() for r in group.responses] == there["responses"]
        assert group.origin["file"] == str(earlier / "samples.jsonl")
        assert group.origin["source"] == "onpolicy"
    # ages count from the start of this run
    assert [i["age/max"] for i in watch.infos] == [0, 1, 2, 3]
    assert all(i["onpolicy_share"] == 0 for i in watch.infos)


def test_the_same_groups_give_the_same_weights_as_when_they_were_fresh(tmp_path):
    """One strict round: the replay sees the same tokens, pairs and policy."""
    one = {"rounds": 1, "reuse": 1, "batch_size": 4}
    fresh, _, _ = train(source("onpolicy", prompt_order="fixed", **one), tmp_path / "fresh")
    data = replay(tmp_path / "fresh", prompt_order="fixed", **one)
    again, _, _ = train(data, tmp_path / "again")
    assert same(fresh, again)


def test_no_sampler_is_needed(tmp_path, earlier):
    data = ReplayDataModule(TokenBandit(seed=0), path=earlier, batch_size=4)
    _, _, module = train(data, tmp_path)
    with pytest.raises(Refusal, match="without a sampler, which validation needs"):
        data.measure(module, data.validation_prompts)


def test_importance_weights_are_against_the_stored_behaviour(tmp_path, earlier):
    data = replay(earlier, batch_size=8, reuse=1)
    module = REINFORCE(HFPolicy(gpt_nano()), importance="response", importance_cap=10.0)
    _, watch, _ = train(data, tmp_path, module)
    # the second round was sampled by a trained policy, this one starts anew
    assert watch.infos[0]["importance/kl"] > 1e-3
    assert 0 < watch.infos[0]["importance/ess"] < 1


def test_rounds_of_a_part_and_uses(tmp_path, earlier):
    data = replay(earlier, prompts_per_round=4, batch_size=4, rounds=4, reuse=1)
    _, watch, _ = train(data, tmp_path)
    rows = [r for n in range(4) for r in data.stored_rows(n)]
    assert sorted(rows[:8]) == sorted(rows[8:]) == list(range(8))
    assert [i["uses"] for i in watch.infos] == [0, 0, 1, 1]


def test_checkpoints_hold_row_ids_and_resume_is_bitwise(tmp_path, earlier):
    def data():
        return replay(earlier, batch_size=2, reuse=2)

    whole, _, _ = train(data(), tmp_path / "whole")
    train(data(), tmp_path / "run", stop=3)
    again = data()
    weights, _, _ = train(again, tmp_path / "run", ckpt_path=tmp_path / "run" / "stopped.ckpt")
    assert same(whole, weights)
    saved = again.state_dict()["round"]
    assert saved["groups"] == [] and set(saved["stored"]) == {"rows", "digest"}


def test_another_file_in_its_place_is_refused_on_resume(tmp_path, earlier):
    copy = tmp_path / "samples.jsonl"
    copy.write_bytes((earlier / "samples.jsonl").read_bytes())
    train(replay(copy, reuse=2), tmp_path / "run", stop=3)
    records = lines(earlier)
    records[0]["responses"][0]["reward"] += 0.25
    copy.write_text("".join(json.dumps(r) + "\n" for r in records))
    with pytest.raises(Refusal, match="written for other stored data"):
        train(replay(copy, reuse=2), tmp_path / "run", ckpt_path=tmp_path / "run" / "stopped.ckpt")


def test_verdicts_of_an_oracle_come_back_and_belong_to_the_data(tmp_path, earlier):
    records = lines(earlier)
    for record in records:
        record["comparisons"] = [[0, 1, 1.0], [1, 2, 0.0]]
    copy = tmp_path / "samples.jsonl"
    copy.write_text("".join(json.dumps(r) + "\n" for r in records))
    _, watch, _ = train(replay(copy, reuse=2), tmp_path / "run", stop=3)
    pairs = [b.view.pairs.tolist() for b in watch.batches]
    assert pairs[0] == [[0, 1], [2, 1], [3, 4], [5, 4]]  # not those of the rewards
    records[0]["comparisons"][0][2] = 0.0
    copy.write_text("".join(json.dumps(r) + "\n" for r in records))
    with pytest.raises(Refusal, match="written for other stored data"):
        train(replay(copy, reuse=2), tmp_path / "run", ckpt_path=tmp_path / "run" / "stopped.ckpt")


def test_some_can_be_held_out_for_reward_models(earlier):
    data = replay(earlier, held_out=0.25, batch_size=3)
    assert len(data.held_out_groups) == 2 and data.stored.size == 6
    data.check(RewardModel(HFPolicy(gpt_nano())))


# --------------------------------------------------------------------------- what is not there


def test_missing_rewards_name_the_line(tmp_path, earlier):
    records = lines(earlier)
    records[2]["responses"][1]["reward"] = None
    records[4]["responses"][0]["behaviour_logps"] = None
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    data = replay(path)
    with pytest.raises(Refusal, match=r"samples\.jsonl, line 3\)"):
        data.check(RWR(HFPolicy(gpt_nano())))
    with pytest.raises(Refusal, match=r"no behaviour log-probs .*line 5\)"):
        data.check(REINFORCE(HFPolicy(gpt_nano()), importance="token"))
    with pytest.raises(Refusal, match=r"data=onpolicy, or set objective\.importance=token"):
        data.check(REINFORCE(HFPolicy(gpt_nano())))
    data.check(dpo())


def change(records, what):
    what(records)
    return "".join(json.dumps(r) + "\n" for r in records)


BROKEN = {
    "not json": (lambda text: text.replace('{"prompt_id"', '{"prompt_id', 1), "line 1: it cannot"),
    "an array": (lambda text: "[1]\n" + text, "line 1: it is a list"),
    "no ids": (lambda r: r[1].pop("prompt_ids"), "line 2: prompt_ids is missing"),
    "no responses": (lambda r: r[1].update(responses=[]), "line 2: responses"),
    "text ids": (lambda r: r[0].update(prompt_ids=["a"]), "prompt_ids is not a list of token"),
    "empty prompt": (lambda r: r[0].update(prompt_ids=[]), "prompt_ids is empty"),
    "no text": (lambda r: r[3]["responses"][2].pop("text"), r"line 4: responses\[2\]\.text is mis"),
    "a reward of text": (lambda r: r[0]["responses"][0].update(reward="1"), "reward is text"),
    "a NaN": (lambda r: r[0]["responses"][0].update(reward=float("nan")), "reward is the number"),
    "few logps": (lambda r: r[0]["responses"][0]["behaviour_logps"].pop(), "null or 9 numbers"),
    "a strange field": (lambda r: r[0]["responses"][0].update(x=1), "does not make a group"),
    "a string response": (lambda r: r[0].update(responses=["a"]), "is text, not an object"),
    "a version of text": (lambda r: r[0].update(policy_version="3"), "policy_version is text"),
    "a rank of text": (lambda r: r[0]["responses"][0].update(rank="1"), "rank is text"),
    "comparisons of text": (lambda r: r[1].update(comparisons="x"), "line 2: comparisons is text"),
    "a lone number": (lambda r: r[1].update(comparisons=[0.5]), r"line 2: comparisons\[0\]"),
    "itself": (lambda r: r[1].update(comparisons=[[1, 1, 0.5]]), r"line 2: comparisons\[0\]"),
    "no such response": (lambda r: r[1].update(comparisons=[[0, 1, 1], [0, 3, 1.0]]), r"ons\[1\]"),
    "not a probability": (lambda r: r[1].update(comparisons=[[0, 1, 1.5]]), "probability"),
    "other tokenizer": (lambda r: r[0]["responses"][0].update(text="hello"), "tokenizers differ"),
    "other vocabulary": (lambda r: r[0]["responses"][0]["ids"].__setitem__(0, 100), "knows 100"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_with_their_line(tmp_path, earlier, name):
    what, words = BROKEN[name]
    text = (earlier / "samples.jsonl").read_text()
    path = tmp_path / "broken.jsonl"
    records = lines(earlier)
    path.write_text(what(text) if name in ("not json", "an array") else change(records, what))
    with pytest.raises(Refusal, match=words):
        read_samples(path, task=TokenBandit(seed=0), vocab_size=100)


def test_files_that_are_not_there_or_empty_are_refused(tmp_path):
    task = TokenBandit(seed=0)
    with pytest.raises(Refusal, match="there is no file"):
        read_samples(tmp_path / "none", task=task)
    (tmp_path / "samples.jsonl").write_text("\n")
    with pytest.raises(Refusal, match="holds no groups"):
        read_samples(tmp_path, task=task)
    (tmp_path / "samples.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Refusal, match="line 1: it cannot be read as JSON in UTF-8"):
        read_samples(tmp_path, task=task)
