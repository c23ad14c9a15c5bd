"""The sentiment and instruction tasks: shipped prompts, their checks, and their rewards."""

import importlib.util
import json
from pathlib import Path

import pytest

from lit_pref.policies.models import tiny
from lit_pref.rewards import InstructionReward, RewardError, checked_scores
from lit_pref.rewards.instructions import CHECKS, satisfied
from lit_pref.tasks import ShippedText
from lit_pref.types import Group, Prompt, Refusal, Response

ROOT = Path(__file__).parents[2]
FILES = ROOT / "lit_pref" / "tasks" / "files"


def lines(name):
    return [json.loads(line) for line in (FILES / name).read_text().splitlines()]


def group(checks, *responses):
    return Group(
        prompt=Prompt(id=0, text="p", ids=[1], columns={"checks": checks}),
        responses=[Response(ids=[0], text=text) for text in responses],
    )


# ------------------------------------------------------------------------------- checks


@pytest.mark.parametrize(
    ("check", "yes", "no"),
    [
        ({"kind": "max_words", "count": 3}, ["one two three", "it's well-known, yes"], ["a b c d", "", "..."]),
        ({"kind": "min_words", "count": 2}, ["one two"], ["one", "one - !"]),
        ({"kind": "require", "words": ["sea", "c++"]}, ["The Sea, and C++."], ["seaside c++", "sea"]),
        ({"kind": "forbid", "words": ["sea"]}, ["The seaside."], ["By the SEA.", " "]),
        ({"kind": "bullets", "count": 2}, ["- a\n- b", "Well:\n1. a\n 2) b", "* a\n\n\u2022 b"], ["- a", "- a\n- b\n- c", "-a\n-b"]),
        ({"kind": "json", "keys": ["a"]}, ['{"a": 1}', '```json\n{"a": [], "b": 2}\n```'], ['{"b": 1}', '["a"]', 'Here: {"a": 1}', "{'a': 1}", "[" * 9999]),
        ({"kind": "lowercase"}, ["all low, 3 times."], ["Not all", "123"]),
        ({"kind": "uppercase"}, ["ALL UP!"], ["ALL up", "123"]),
        ({"kind": "starts_with", "text": "In short:"}, [" In short: yes"], ["in short: yes"]),
        ({"kind": "ends_with", "text": "all."}, ["That is all. \n"], ["all. Or not"]),
        ({"kind": "no_commas"}, ["a b"], ["a, b", ""]),
        ({"kind": "paragraphs", "count": 2}, ["a\nb\n\nc", "a\n \n\n\nb\n\n"], ["a\nb", "a\n\nb\n\nc"]),
    ],
    ids=lambda v: v.get("kind") if isinstance(v, dict) else "",
)  # fmt: skip
def test_checks_by_hand(check, yes, no):
    assert [satisfied(text, check) for text in yes] == [True] * len(yes)
    assert [satisfied(text, check) for text in no] == [False] * len(no)
    assert not satisfied(" \n", check)


def test_the_reward_is_the_share_satisfied():
    checks = [{"kind": "max_words", "count": 2}, {"kind": "lowercase"}, {"kind": "no_commas"}]
    scores = InstructionReward().score([group(checks, "one two", "One, two", "One two", "")])
    assert scores == pytest.approx([1.0, 1 / 3, 2 / 3, 0.0])


@pytest.mark.parametrize(
    "checks",
    [None, [], "max_words", [{"kind": "rhyme"}], [{"kind": "max_words"}], [{"kind": "max_words", "count": True}],
     [{"kind": "require", "words": "sea"}], [{"kind": "require", "words": [""]}], [3]],
)  # fmt: skip
def test_checks_that_are_not_understood_stop_the_run(checks):
    with pytest.raises(RewardError, match="check"):
        checked_scores(InstructionReward(), [group(checks, "a")])


# ------------------------------------------------------------------------------- files


def test_the_instructions_are_what_the_script_writes():
    path = ROOT / "scripts" / "make_instructions.py"
    spec = importlib.util.spec_from_file_location("make_instructions", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (FILES / "instructions.jsonl").read_text() == script.text()


def test_shipped_prompts_are_many_different_and_checkable():
    for name in ("sentiment.jsonl", "instructions.jsonl"):
        prompts = [row["prompt"] for row in lines(name)]
        assert len(prompts) >= 200
        assert len(set(prompts)) == len(prompts)
        assert all(p.isascii() for p in prompts)
    kinds = {c["kind"] for row in lines("instructions.jsonl") for c in row["checks"]}
    assert kinds == set(CHECKS)
    for row in lines("instructions.jsonl"):
        InstructionReward().score([group(row["checks"], "a")])


def test_prompts_of_the_sentiment_task_are_neutral():
    vader = pytest.importorskip("vaderSentiment.vaderSentiment", reason="extra [sentiment]")
    analyzer = vader.SentimentIntensityAnalyzer()
    compounds = [
        analyzer.polarity_scores(row["prompt"])["compound"] for row in lines("sentiment.jsonl")
    ]
    assert abs(sum(compounds) / len(compounds)) < 0.05


def test_sentiment_scores_are_those_of_the_lexicon():
    pytest.importorskip("vaderSentiment", reason="extra [sentiment]")
    from lit_pref.rewards import SentimentReward

    reward = SentimentReward()
    texts = ("It was wonderful!", "It was a table.", "It was terrible.", "", "It was not good.")
    good, nothing, bad, empty, negated = reward.score([group(None, *texts)])
    # "wonderful" has valence 2.7, one exclamation mark adds 0.292: s / sqrt(s^2 + 15)
    assert good == pytest.approx(2.992 / (2.992**2 + 15) ** 0.5, abs=1e-4)
    assert nothing == empty == 0.0
    assert bad < -0.4
    assert negated < 0
    assert SentimentReward().version == reward.version


# ------------------------------------------------------------------------------- the task


def make(**settings):
    spec = tiny()
    given = {"name": "instructions", "file": "instructions.jsonl", "reward": InstructionReward()}
    return ShippedText(
        spec.tokenizer, eos_ids=spec.eos_ids, context_length=spec.context_length,
        max_new_tokens=8, **{**given, **settings},
    )  # fmt: skip


def test_the_task_is_a_text_task_with_a_true_reward(tmp_path):
    task = make(offline_prompts=5, validation_prompts=20)
    train, held = task.prompts(), task.validation()
    assert len(train) + len(held) == len(lines("instructions.jsonl"))
    assert len(held) == 20
    assert {p.file for p in [*train, *held]} == {"lit_pref/tasks/files/instructions.jsonl"}
    assert all(p.columns["checks"] for p in train)
    assert task.true_reward().name == "instructions"
    assert task.offline() is None
    assert task.offline_prompts == 5
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 2)
    with_pairs = make(offline_prompts=5, pairs=str(pairs))
    assert len(with_pairs.offline()) == 2
    assert with_pairs.offline_prompts == 0
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "a", "checks": []}\n{"prompt": "b", "checks": []}\n')
    assert {p.file for p in make(prompts=str(own)).all_prompts()} == {str(own)}


def test_refusals():
    with pytest.raises(Refusal, match=r"sentiment\.jsonl"):
        make(file="rhymes.jsonl")
    with pytest.raises(Refusal, match=r"task\.offline_prompts"):
        make(offline_prompts=-1)


def test_lengths_of_given_responses_are_bounded_as_in_the_text_task(tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    row = {"prompt": "Say something.", "chosen": "word " * 40, "rejected": "no"}
    pairs.write_text("".join(json.dumps(row | {"rejected": f"no {n}"}) + "\n" for n in range(4)))
    cut = make(pairs=str(pairs), max_response_tokens=6, cache_dir=str(tmp_path / "kept"))
    groups = cut.offline()
    assert {len(g.responses[0].ids) for g in groups} == {6}
    assert list((tmp_path / "kept" / "data").iterdir())
    dropped = make(pairs=str(pairs), max_response_tokens=6, long_responses="drop", max_dropped=1.0)
    with pytest.raises(Refusal, match="response longer than 6 tokens"):
        dropped.offline()
    with pytest.raises(Refusal, match="long_prompts"):
        make(long_prompts="shorten")
