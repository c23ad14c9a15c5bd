"""Rewards: hand-computed scores, versions, and errors that name the culprit."""

import functools
import math

import numpy as np
import pytest
import torch

from lit_pref.rewards import (
    CallableReward,
    KeywordReward,
    LengthReward,
    NoisyPreference,
    RegexReward,
    RewardError,
    WeightedSum,
    checked_scores,
    task_reward,
)
from lit_pref.rewards.scoring import check_prompts
from lit_pref.types import Group, Prompt, Refusal, Response


def group(prompt: str, *responses: str, id: int = 0, **columns) -> Group:
    """A group whose responses have one token per character."""
    return Group(
        prompt=Prompt(id=id, text=prompt, ids=[1], columns=columns),
        responses=[Response(ids=[0] * len(text), text=text) for text in responses],
    )


class Fixed:
    """Applies ``function`` to the flat list of response texts."""

    name, version = "fixed", "1"

    def __init__(self, function):
        self.function = function

    def score(self, groups):
        return self.function([r.text for g in groups for r in g.responses])


# ------------------------------------------------------------------------------- rules


def test_length():
    reward = LengthReward(max_new_tokens=8)
    assert reward.score([group("p", "ab", ""), group("q", "abcdefgh")]) == [-0.25, 0.0, -1.0]
    assert reward.version != LengthReward(max_new_tokens=9).version
    with pytest.raises(Refusal, match="at least 1; got 0"):
        LengthReward(max_new_tokens=0)


def test_regex():
    groups = [group("p", "a 42 b", "42", "none")]
    assert RegexReward(pattern=r"\d+").score(groups) == [1.0, 1.0, 0.0]
    full = RegexReward(pattern=r"\d+", reward=-2.5, mode="fullmatch")
    assert full.score(groups) == [0.0, -2.5, 0.0]
    versions = {
        RegexReward(pattern="a").version,
        RegexReward(pattern="b").version,
        RegexReward(pattern="a", reward=2).version,
        RegexReward(pattern="a", mode="fullmatch").version,
    }
    assert len(versions) == 4
    assert RegexReward(pattern="a").version == RegexReward(pattern="a", reward=1).version


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "("}, "regular expression"),
        ({"pattern": None}, "regular expression"),
        ({"pattern": "a", "mode": "match"}, "search or fullmatch; got 'match'"),
        ({"pattern": "a", "reward": math.nan}, "finite"),
    ],
)
def test_regex_refusals(settings, message):
    with pytest.raises(Refusal, match=message):
        RegexReward(**settings)


def test_keyword():
    reward = KeywordReward(words=["good", "c++", "well done"], per_word=0.5)
    responses = ["Good, GOOD c++!", "goodness", "well done: good", "c++x", ""]
    assert reward.score([group("p", *responses)]) == [1.0, 0.0, 1.0, 0.0, 0.0]
    same = KeywordReward(words=["c++", "Good", "good", "well done"], per_word=0.5)
    assert same.version == reward.version
    assert KeywordReward(words=["good"]).version != KeywordReward(words=["bad"]).version


@pytest.mark.parametrize("words", ["good", [], ["good", " "]])
def test_keyword_refusals(words):
    with pytest.raises(Refusal, match="word"):
        KeywordReward(words=words)


# ------------------------------------------------------------------------------- callable


def ratio(prompts, responses, answer, *, weight=None):
    weight = weight or [1.0] * len(responses)
    return [w * float(r == a) for r, a, w in zip(responses, answer, weight, strict=True)]


def test_callable_gets_one_entry_per_response():
    seen = {}

    def spy(prompts, responses, **columns):
        seen.update(prompts=prompts, responses=responses, columns=columns)
        return [float(len(r)) for r in responses]

    groups = [group("p", "a", "bb", answer="x"), group("q", "ccc", level=3)]
    assert CallableReward(spy).score(groups) == [1.0, 2.0, 3.0]
    assert seen == {
        "prompts": ["p", "p", "q"],
        "responses": ["a", "bb", "ccc"],
        "columns": {"answer": ["x", "x", None], "level": [None, None, 3]},
    }


def test_callable_gets_only_the_columns_it_names():
    groups = [group("p", "yes", "no", answer="yes", weight=2.0, prompts="clash", other=1)]
    assert CallableReward(ratio).score(groups) == [2.0, 0.0]
    two = CallableReward(lambda p, r: [float(len(x)) for x in r])
    assert two.score([group("x", "abc", p="clash", r="clash")]) == [3.0]


def test_an_argument_that_is_no_column_names_the_columns():
    groups = [group("p", "a", anwser="a", level=3)]
    says = r"'answer' is no column of these prompts \(they have anwser, level; did you mean anwser"
    with pytest.raises(RewardError, match=says):
        checked_scores(CallableReward(ratio), groups)
    with pytest.raises(RewardError, match="they have none"):
        checked_scores(CallableReward(ratio), [group("p", "a")])


def test_columns_are_checked_before_a_response_is_there():
    prompts = [Prompt(id=n, text="p", ids=[1], columns=c) for n, c in enumerate([{"level": 3}, {}])]
    says = r"function=.*ratio: .*'answer' is no column of these prompts \(they have level\)"
    noisy = NoisyPreference(CallableReward(ratio), flip=0.1)
    for source in (CallableReward(ratio), WeightedSum([noisy], weights=[1.0], normalise="group")):
        with pytest.raises(Refusal, match=says):
            check_prompts(source, prompts)
    reward = CallableReward(ratio)
    prompts[0].columns["answer"] = "a"
    check_prompts(reward, prompts)  # the second row lacks it, and is scored with None
    assert checked_scores(reward, [group("p", "a")]) == [0.0]


def test_a_function_of_one_response_is_told_how_to_say_so():
    for function in (lambda prompt, response: float(len(response)), _length):
        with pytest.raises(RewardError, match=r"returned float; .* set reward.takes=one"):
            checked_scores(CallableReward(function), [group("p", "a", "bb")])


async def _length(prompt, response):
    return float(len(response))


def test_async_functions_that_are_not_declared_as_such(recwarn):
    around = CallableReward(lambda prompt, response: _length(prompt, response), takes="one")
    assert checked_scores(around, [group("p", "a", "bb")]) == [1.0, 2.0]
    listed = CallableReward(lambda prompts, responses: [_length("p", r) for r in responses])
    with pytest.raises(RewardError, match=r"nobody awaited\. Declare it with async def"):
        checked_scores(listed, [group("p", "a", "bb")])
    assert not [w for w in recwarn if "never awaited" in str(w.message)]


def test_callable_chat_prompts_arrive_as_messages():
    messages = [{"role": "user", "content": "hi"}]
    chat = Group(prompt=Prompt(id=0, text=messages, ids=[1]), responses=[Response(ids=[1])])
    reward = CallableReward(lambda prompts, responses: [float(p == messages) for p in prompts])
    assert reward.score([chat]) == [1.0]


def test_callable_by_dotted_path(tmp_path, monkeypatch):
    package = tmp_path / "my_reward_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    scores = package / "scores.py"
    scores.write_text(
        "number = 3\n\ndef brevity(prompts, responses):\n    return [-len(r) for r in responses]\n"
    )
    (package / "needs.py").write_text("import module_that_is_not_there\n")
    (package / "broken.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    reward = CallableReward("my_reward_package.scores.brevity")
    assert reward.name == "my_reward_package.scores.brevity"
    assert checked_scores(reward, [group("p", "abc")]) == [-3.0]
    for path, message in {
        "my_reward_package.scores.brevty": r"did you mean my_reward_package\.scores\.brevity\?",
        "my_reward_package.scorse.brevity": r"did you mean my_reward_package\.scores\?",
        "my_reward_packge.scores.brevity": r"did you mean my_reward_package\?",
        "my_reward_package.scores.number": "expected a function, got int",
        "my_reward_package.needs.f": "'module_that_is_not_there', which is not installed",
        "my_reward_package.broken.f": "failed with SyntaxError",
        "brevity": "dotted path",
        "my reward.f": "dotted path",
    }.items():
        with pytest.raises(Refusal, match=message):
            CallableReward(path)


def test_callable_version_follows_the_source():
    assert CallableReward(ratio).version == CallableReward(ratio).version
    assert CallableReward(ratio).version != CallableReward(group).version
    one = functools.partial(ratio, weight=[1.0])
    two = functools.partial(ratio, weight=[2.0])
    assert CallableReward(one).version != CallableReward(two).version
    assert CallableReward(one, name="mine").name == "mine"


def test_callable_objects():
    class Judge:
        def __call__(self, prompts, responses):
            return [1.0] * len(responses)

    assert CallableReward(Judge()).score([group("p", "a")]) == [1.0]
    with pytest.raises(Refusal, match="got 3"):
        CallableReward(3)


# ------------------------------------------------------------------------------- sum


def test_weighted_sum():
    total = WeightedSum(
        [LengthReward(max_new_tokens=4), RegexReward(pattern="b")], weights=[2.0, -0.5]
    )
    # 2 * (-1/4) - 0.5 * 0 and 2 * (-2/4) - 0.5 * 1
    assert total.score([group("p", "a", "ab")]) == [-0.5, -1.5]
    assert total.name == "2 length + -0.5 regex"
    other = WeightedSum(total.sources, weights=[2.0, 0.5])
    deeper = WeightedSum([LengthReward(max_new_tokens=5), total.sources[1]], weights=[2.0, -0.5])
    assert len({total.version, other.version, deeper.version}) == 3


@pytest.mark.parametrize("weights", [[], [1.0, 2.0], [math.inf]])
def test_weighted_sum_refusals(weights):
    with pytest.raises(Refusal, match="weight"):
        WeightedSum([RegexReward(pattern="a")], weights=weights)


def test_weighted_sum_names_the_part_that_fails():
    total = WeightedSum([RegexReward(pattern="a"), Fixed(lambda t: [math.nan])], weights=[1, 1])
    with pytest.raises(RewardError, match="'fixed'"):
        checked_scores(total, [group("p", "a")])


# ------------------------------------------------------------------------------- checks


@pytest.mark.parametrize(
    "scores",
    [
        [1, True],
        (1.0, 1.0),
        torch.ones(2, dtype=torch.bfloat16),
        np.ones(2, dtype=np.float32),
        [torch.tensor(1.0), np.float64(1.0)],
    ],
)
def test_kinds_of_numbers(scores):
    out = checked_scores(Fixed(lambda texts: scores), [group("p", "a", "b")])
    assert out == [1.0, 1.0]
    assert [type(x) for x in out] == [float, float]


@pytest.mark.parametrize(
    "bad", [math.nan, math.inf, -math.inf, None, "0.5", [1.0], 10**400, torch.ones(2), 1j]
)
def test_score_that_is_no_finite_number(bad):
    source = Fixed(lambda texts: [bad if t == "bad" else 0.0 for t in texts])
    with pytest.raises(RewardError, match="expected a finite number, got") as error:
        checked_scores(source, [group("p", "a"), group("q", "b", "bad", id=7)])
    message = str(error.value)
    assert "'fixed' (version 1)" in message
    assert "prompt (id 7): 'q'" in message
    assert message.endswith("response: 'bad'")


def test_reward_that_raises_names_prompt_response_and_cause():
    def touchy(texts):
        if "bad" in texts:
            raise KeyError("boom")
        return [0.0] * len(texts)

    groups = [group("p", "a"), group("q" * 500, "b", "bad", "c", id=7), group("r", "d")]
    groups[1].prompt.file, groups[1].prompt.row = "prompts.jsonl", 12
    with pytest.raises(RewardError, match="it raised KeyError: 'boom'") as error:
        checked_scores(Fixed(touchy), groups)
    message = str(error.value)
    assert "prompt (id 7, prompts.jsonl:12): 'qqq" in message
    assert "qqq...\n" in message
    assert len(message) < 500
    assert message.endswith("response: 'bad'")
    assert isinstance(error.value.__cause__, KeyError)


def test_reward_that_raises_only_on_several_responses_or_prompts():
    def pairs(texts):
        if "a" in texts and "b" in texts:
            raise ValueError("together")
        return [0.0] * len(texts)

    with pytest.raises(RewardError, match=r"'b' \(first of 2; no response fails alone\)"):
        checked_scores(Fixed(pairs), [group("p", "c"), group("q", "b", "a")])
    with pytest.raises(RewardError, match=r"'a' \(first of 2 prompts; none fails alone\)"):
        checked_scores(Fixed(pairs), [group("p", "a"), group("q", "b")])


def test_wrong_count():
    def forgetful(texts):
        return [0.0 for t in texts if t != "bad"]

    groups = [group("p", "a", "b"), group("q", "bad", "c", id=7)]
    with pytest.raises(RewardError, match="expected 4 scores, one per response, got 3") as error:
        checked_scores(Fixed(forgetful), groups)
    assert "prompt (id 7): 'q'" in str(error.value)
    with pytest.raises(RewardError, match=r"expected 4 .* got 1\n.*id 0"):
        checked_scores(Fixed(lambda texts: [0.0]), groups)


def test_callable_that_returns_no_list():
    for value in (1.0, None, "text"):
        reward = CallableReward(lambda prompts, responses, value=value: value)
        with pytest.raises(RewardError, match="expected a list of 1 numbers, one per response"):
            checked_scores(reward, [group("p", "a")])


def test_nothing_to_score():
    assert checked_scores(Fixed(lambda texts: 1 / 0), []) == []


def test_interrupts_pass_through():
    def stop(texts):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checked_scores(Fixed(stop), [group("p", "a")])


def test_task_reward():
    class WithReward:
        name = "bandit"

        def true_reward(self):
            return LengthReward(max_new_tokens=1)

    class Without(WithReward):
        name = "text"

        def true_reward(self):
            return None

    assert task_reward(WithReward()).name == "length"
    with pytest.raises(Refusal, match="'text' has none"):
        task_reward(Without())
