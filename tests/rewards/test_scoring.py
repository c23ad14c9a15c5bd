"""Scoring beside sampling: what overlaps, what waits, what a failure leaves. No clocks: events."""

import asyncio
import contextlib
import threading
from concurrent.futures import wait

import pytest
import torch

from lit_pref.data.generate import generate_groups
from lit_pref.rewards import CallableOracle, CallableReward, RewardError, Scoring, checked_scores
from lit_pref.rewards.learned import own_device
from lit_pref.rewards.scoring import Guarded
from lit_pref.types import Group, Prompt, Refusal, Response

SOON = 20  # seconds until a test that would hang fails


def group(prompt, *responses, id=0, **columns):
    return Group(
        prompt=Prompt(id=id, text=prompt, ids=[1], columns=columns),
        responses=[Response(ids=[0] * len(text), text=text) for text in responses],
    )


class Sampler:
    """Makes one group after the other; ``between(n)`` is called after the n-th."""

    max_new_tokens = 4

    def __init__(self, between=lambda n: None):
        self.between, self.made = between, 0

    def sample(self, policy, prompts, *, responses, on_group, **rest):
        groups = [
            group(p.text, *["x" * (p.id + k) for k in range(responses)], id=p.id) for p in prompts
        ]
        for n, each in enumerate(groups):
            self.made += 1
            on_group(n, each)
            self.between(n)
        return groups


class Task:
    eos_ids = ()

    def decode(self, ids):
        return ""


def generate(sampler, reward, *, prompts=4, failed=None):
    return generate_groups(
        object(),
        [Prompt(id=n, text=f"p{n}", ids=[n]) for n in range(prompts)],
        task=Task(),
        sampler=sampler,
        reward=reward,
        key=(0,),
        responses=2,
        context=contextlib.nullcontext,
        on_failure=lambda groups: failed.extend(groups),
    )


class Recorded:
    """A reward that tells when it is called."""

    name, version = "recorded", "1"

    def __init__(self, during=lambda groups: None, **attributes):
        self.calls, self.during = [], during
        self.__dict__.update(attributes)

    def score(self, groups):
        self.calls.append([g.prompt.id for g in groups])
        self.during(groups)
        return [float(len(r.text)) for g in groups for r in g.responses]


def test_groups_are_scored_while_others_are_still_sampled():
    """The sampler does not go on before the first group is being scored: it would hang otherwise."""
    begun = threading.Event()
    reward = Recorded(lambda groups: begun.set())
    groups = generate(Sampler(lambda n: begun.wait(SOON) or pytest.fail("no overlap")), reward)
    assert [[r.reward for r in g.responses] for g in groups] == [[0, 1], [1, 2], [2, 3], [3, 4]]
    assert {g.reward_source for g in groups} == {"recorded@1"}


def test_sampling_goes_on_while_a_slow_reward_scores():
    """The reward of the first group waits for the last group to be sampled."""
    last = threading.Event()
    reward = Recorded(lambda groups: last.wait(SOON) or pytest.fail("sampling waited"))
    generate(Sampler(lambda n: last.set() if n == 3 else None), reward)
    assert reward.calls == [[0], [1], [2], [3]]


def test_as_many_calls_at_once_as_the_reward_allows():
    together = threading.Barrier(4)
    reward = Recorded(lambda groups: together.wait(SOON), concurrency=4)
    groups = generate(Sampler(), reward)
    assert groups[3].responses[1].reward == 4.0


def test_one_call_at_a_time_unless_it_says_otherwise():
    flying, most = [], []

    def during(groups):
        flying.append(1)
        most.append(len(flying))
        flying.pop()

    generate(Sampler(), Recorded(during), prompts=16)
    assert max(most) == 1


@pytest.mark.parametrize(
    ("size", "calls"),
    [(1, [[0], [1], [2], [3], [4]]), (2, [[0, 1], [2, 3], [4]]), (9, [[0, 1, 2, 3, 4]])],
)
def test_calls_hold_the_same_groups_whatever_the_timing(size, calls):
    reward = Recorded(groups_at_once=size)
    generate(Sampler(), reward, prompts=5)
    assert reward.calls == calls


def test_a_failure_stops_sampling_and_keeps_what_is_scored(monkeypatch):
    calls = []

    class Watched(Scoring):
        def _submit(self):
            super()._submit()
            calls[:] = [call for call, _ in self._calls]

    monkeypatch.setattr("lit_pref.data.generate.Scoring", Watched)

    def during(groups):
        if groups[0].prompt.id == 1:
            raise ValueError("boom")

    def between(n):
        if n == 1:
            wait(calls, SOON)

    failed, sampler = [], Sampler(between)
    with pytest.raises(RewardError, match="boom") as error:
        generate(sampler, Recorded(during), failed=failed, prompts=8)
    assert "prompt (id 1)" in str(error.value)
    assert sampler.made == 3  # of 8: the next finished group meets the error
    assert [g.prompt.id for g in failed] == [0, 1, 2]
    assert [r.reward for r in failed[0].responses] == [0.0, 1.0]
    assert failed[1].responses[0].reward is None


def test_an_interrupt_passes_through():
    with pytest.raises(KeyboardInterrupt), Scoring(Recorded()) as scoring:  # noqa: PT012
        scoring.add(group("p", "a"))
        raise KeyboardInterrupt


def test_an_inner_reward_is_called_as_it_allows():
    flying, most = [], []

    def during(groups):
        flying.append(1)
        most.append(len(flying))
        flying.pop()

    inner = Guarded(Recorded(during))
    threads = [threading.Thread(target=inner.scores, args=([group("p", "a")],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert max(most) == 1


# ------------------------------------------------------------------------------- functions


def test_async_function_on_a_batch():
    async def lengths(prompts, responses, bonus):
        await asyncio.sleep(0)
        return [len(r) + b for r, b in zip(responses, bonus, strict=True)]

    reward = CallableReward(lengths)
    assert checked_scores(reward, [group("p", "a", "bb", bonus=1), group("q", "c", bonus=0)]) == [
        2,
        3,
        1,
    ]
    assert reward.concurrency == 16


def test_async_calls_of_single_responses_run_together_on_one_loop():
    """Each waits for all six: one after the other would hang. Two groups of three."""
    loops, arrived = set(), []

    async def judge(prompt, response, level=0):
        loops.add(id(asyncio.get_running_loop()))
        arrived.append(response)
        while len(arrived) < 6:
            await asyncio.sleep(0.001)
        return len(response) + level

    reward = CallableReward(judge, takes="one")
    groups = [group("p", "a", "bb", "ccc", level=10), group("q", "a", "bb", "ccc", id=1)]
    with Scoring(reward) as scoring:
        for each in groups:
            scoring.add(each)
        scoring.finish()
    assert [[r.reward for r in g.responses] for g in groups] == [[11, 12, 13], [1, 2, 3]]
    assert len(loops) == 1


def test_async_calls_keep_to_the_limit():
    flying = most = 0

    async def judge(prompt, response):
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0.001)
        flying -= 1
        return 0.0

    reward = CallableReward(judge, takes="one", concurrency=3)
    groups = [group("p", *"abcd", id=n) for n in range(6)]
    with Scoring(reward) as scoring:
        for each in groups:
            scoring.add(each)
        scoring.finish()
    assert most == 3


def test_an_async_failure_names_the_response():
    async def judge(prompt, response):
        if response == "bad":
            raise ValueError("no taste")
        return 1.0

    with pytest.raises(RewardError, match="no taste") as error:
        checked_scores(CallableReward(judge, takes="one"), [group("p", "a", "bad", "c", id=5)])
    assert "prompt (id 5)" in str(error.value)
    assert str(error.value).endswith("response: 'bad'")


def test_plain_function_of_single_responses():
    def one(prompt, response, answer):
        return float(response == answer)

    groups = [group("p", "yes", "no", answer="yes"), group("q", "no", answer="no")]
    assert checked_scores(CallableReward(one, takes="one"), groups) == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"takes": "two"}, r"reward\.takes"),
        ({"concurrency": 0}, r"reward\.concurrency"),
        ({"groups_at_once": 0}, r"reward\.groups_at_once"),
    ],
)
def test_refusals(settings, words):
    with pytest.raises(Refusal, match=words):
        CallableReward(lambda p, r: [], **settings)
    if "takes" not in settings:
        with pytest.raises(Refusal, match=words):
            CallableOracle(lambda p, a, b: [], **settings)


def test_an_oracle_needs_two_responses():
    oracle = CallableOracle(lambda p, a, b: [1.0] * len(p))
    with pytest.raises(Refusal, match="2 or more"), Scoring(oracle) as scoring:
        scoring.add(group("p", "a"))


def test_threads_begin_on_the_gpu_of_their_process(monkeypatch):
    """CUDA gives every new thread the first GPU of the machine."""
    present = threading.local()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: getattr(present, "gpu", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: setattr(present, "gpu", gpu))
    torch.cuda.set_device(3)
    seen = []

    def score(prompts, responses):
        seen.append((own_device(), threading.current_thread() is threading.main_thread()))
        return [0.0] * len(responses)

    with Scoring(CallableReward(function=score)) as scoring:
        scoring.add(group("a", "b"))
        scoring.finish()
    assert seen == [("cuda:3", False)]
