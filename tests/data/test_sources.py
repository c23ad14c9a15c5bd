"""Ages, orders, groups without signal, views and provenance, for every source."""

import csv
import json
import logging
import math

import pytest
import torch
from source_runs import Watch, dpo, lines, same, source, train

from lit_pref.data.order import PassOrder
from lit_pref.data.refill import refill
from lit_pref.data.streams import PromptStream
from lit_pref.functional.importance import chi_square, effective_share, importance_weights
from lit_pref.objectives import DPO, GRPO, REINFORCE, RWR, BestOfN
from lit_pref.policies import FrozenReference, HFPolicy, gpt_nano
from lit_pref.rewards import RewardError
from lit_pref.sampling import NativeSampler
from lit_pref.tasks import TokenBandit
from lit_pref.types import Group, Prompt, Refusal, Response


class Coarse:
    """1 where the first token is below 30, else 0: groups of three are often all equal."""

    name, version = "coarse", "1"

    def score(self, groups):
        return [float(r.ids[0] < 30) for g in groups for r in g.responses]


class Flat:
    name, version = "flat", "1"

    def score(self, groups):
        return [0.5 for g in groups for _ in g.responses]


# --------------------------------------------------------------------------- ages


def test_groups_that_are_too_old_count_for_nothing_and_steps_go_on(tmp_path):
    # 2 batches a pass, 3 passes a round: ages 0 to 5 in each round
    data = source("onpolicy", reuse=3, max_age=2)
    module = dpo()
    seen = []

    class Spy(type(module)):
        def training_step(self, batch, batch_idx):
            before = [p.detach().clone() for p in self.policy.parameters()]
            super().training_step(batch, batch_idx)
            seen.append(same(before, list(self.policy.parameters())))

    module.__class__ = Spy
    _, watch, _ = train(data, tmp_path, module)
    assert seen == [False, False, False, True, True, True] * 2
    assert [i["age/too_old"] for i in watch.infos] == [0, 0, 0, 2, 2, 2] * 2
    assert [b.counts["responses"] for b in watch.batches] == [6, 6, 6, 0, 0, 0] * 2
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [float(r["age/too_old"]) for r in rows[1:]] == [0, 0, 0, 2, 2, 2] * 2


def test_of_a_mixed_batch_only_the_stored_part_may_be_too_old(tmp_path):
    data = source("mixed", rounds=2, reuse=1, batch_size=4, max_age=0)
    _, watch, _ = train(data, tmp_path)
    assert [i["age/too_old"] for i in watch.infos] == [0, 2]
    assert [b.tokens.num_responses for b in watch.batches] == [12, 6]
    second = watch.batches[1]
    assert second.notes.response["age"].tolist() == [0.0] * 6
    assert second.counts["groups"] == 4  # they keep their place


@pytest.mark.parametrize("age", [-1, 1.5])
def test_an_age_is_a_number_of_steps(age):
    with pytest.raises(Refusal, match=r"data\.max_age is a number of steps"):
        source("onpolicy", max_age=age)


def test_the_histogram_of_ages_adds_up(tmp_path):
    data = source("offline", prompts_per_round=2, batch_size=2, reuse=12, rounds=1)
    _, watch, _ = train(data, tmp_path)
    names = ("age/share_0", "age/share_1_9", "age/share_10_99", "age/share_100_up")
    found = [tuple(i[n] for n in names) for i in watch.infos]
    assert found == [(1, 0, 0, 0), *[(0, 1, 0, 0)] * 9, *[(0, 0, 1, 0)] * 2]


# --------------------------------------------------------------------------- orders


def test_fixed_order_walks_through_the_prompts_as_they_are():
    prompts = [Prompt(id=n, text=str(n), ids=[n]) for n in range(5)]
    stream = PromptStream(prompts=prompts, seed=0, order="fixed")
    assert [[p.id for p in stream.round(r, 3)] for r in range(3)] == [
        [0, 1, 2],
        [3, 4, 0],
        [1, 2, 3],
    ]
    assert [p.id for p in stream.refill(1, 4, 2, 2)] == [1, 2]  # positions 6 and 7


def test_refills_come_from_a_permutation_of_their_own():
    prompts = [Prompt(id=n, text=str(n), ids=[n]) for n in range(50)]
    stream = PromptStream(prompts=prompts, seed=0)
    first = [p.id for p in stream.round(0, 50)]
    further = [p.id for p in stream.refill(0, 50, 0, 50)]
    assert sorted(first) == sorted(further) == list(range(50))
    assert first != further
    parts = [p.id for start in (0, 20) for p in stream.refill(0, 50, start, 25)][:45]
    assert parts[:25] == further[:25]


@pytest.mark.parametrize("kind", ["onpolicy", "offline", "mixed"])
def test_the_order_of_prompts_is_a_parameter(tmp_path, kind):
    data = source(kind, prompt_order="fixed", rounds=1, reuse=1)
    _, watch, _ = train(data, tmp_path)
    ids = [g.prompt.id for g in watch.rounds[0].groups]
    expected = [p.id for p in data.task.prompts()]
    assert ids == (expected[:2] * 2 if kind == "mixed" else expected[:4])
    with pytest.raises(Refusal, match="shuffled or fixed"):
        source(kind, prompt_order="random")


@pytest.mark.parametrize("order", ["fixed", "shuffled"])
def test_a_fixed_order_holds_within_every_pass_too(order):
    made = PassOrder(3, order=order)
    passes = [
        [made.batch(0, number, position, fresh=2, stored=4, batches=2) for position in range(2)]
        for number in range(3)
    ]
    in_order = [[0, 2, 3], [1, 4, 5]]
    assert (passes == [in_order] * 3) == (order == "fixed")
    assert all(sorted(i for b in batches for i in b) == list(range(6)) for batches in passes)


# --------------------------------------------------------------------------- groups without signal


def group(*rewards):
    responses = [Response(ids=[1], reward=r) for r in rewards]
    return Group(prompt=Prompt(id=0, text="", ids=[0]), responses=responses)


def test_places_are_refilled_in_waves_up_to_the_limit():
    asked = []
    further = [group(0, 0), group(1, 0), group(2, 0), group(3, 3), group(4, 4)]

    def more(wave, start, count):
        asked.append((wave, start, count))
        return further[start : start + count]

    good = group(0, 1)
    groups = [group(1, 1), good, group(1, 1), group(2, 2), group(5, 5)]
    counts = refill(groups, limit=5, more=more)
    # 4 places: 4 further groups fill 2 of them; 1 more is allowed for the other 2
    assert asked == [(0, 0, 4), (1, 4, 1)]
    assert groups[:3] == [further[1], good, further[2]]
    assert [g.weight for g in groups] == [1, 1, 1, 0, 0]
    assert counts == {
        "data/groups_without_signal": 4, "data/refill_sampled": 5, "data/refilled": 2,
        "data/unfilled": 2,
    }  # fmt: skip


def test_without_a_limit_left_the_places_have_weight_zero():
    groups = [group(1, 1), group(0, 1)]
    refill(groups, limit=0, more=lambda *_: pytest.fail("nothing may be sampled"))
    assert [g.weight for g in groups] == [0, 1]


@pytest.mark.parametrize("kind", ["onpolicy", "mixed"])
def test_refilled_rounds_are_counted_written_and_keep_their_size(tmp_path, kind):
    data = source(kind, reward=Coarse(), no_signal="refill", refill_limit=3, rounds=3)
    _, watch, _ = train(data, tmp_path)
    further = [r.counts["data/refill_sampled"] for r in watch.rounds]
    assert sum(further) > 0 and max(further) <= 3
    assert any(r.counts["data/refilled"] for r in watch.rounds)
    fresh = 4 if kind == "onpolicy" else 2
    stored = 0 if kind == "onpolicy" else 6
    expected = 3 * (stored + 3 * fresh + sum(further))
    assert data.counters["samples"] == data.counters["reward_queries"] == expected
    assert len(lines(tmp_path)) == expected / 3
    for round in watch.rounds:
        assert len(round.groups) == 4
        for g in round.groups[:fresh]:
            assert (g.weight == 0) == (len({r.reward for r in g.responses}) == 1)
            assert g.round == round.index and g.policy_version == round.index * 4
    # groups of weight 0 are in no batch
    for batch in watch.batches:
        assert batch.tokens.num_responses == sum(3 for g in set(batch.tokens.prompt_of))


def test_refilling_changes_neither_prompts_nor_samples_of_the_rounds(tmp_path):
    found = []
    for options in ({}, {"no_signal": "refill", "refill_limit": 4}):
        data = source("onpolicy", reward=Flat(), rounds=3, **options)
        train(data, tmp_path / str(len(found)), dpo())
        found.append([x for x in lines(tmp_path / str(len(found)))])
    without, refilled = found
    assert len(refilled) == 2 * len(without)  # all four are refilled in vain in each round
    firsts = [x for n, x in enumerate(refilled) if n % 8 < 4]
    assert firsts == without  # a flat reward trains nothing, so the policies are the same
    texts = [r["text"] for x in refilled for r in x["responses"]]
    assert len(set(texts)) == len(texts)


class Breaks(Flat):
    """Scores so many groups, then fails."""

    def __init__(self, after):
        self.left = after

    def score(self, groups):
        self.left -= len(groups)
        if self.left < 0:
            raise OSError("no more")
        return super().score(groups)


def test_a_failure_while_refilling_keeps_the_whole_round(tmp_path):
    # round 0: 4 groups and 2 refills; round 1: 4 groups, then the first refill fails
    data = source("onpolicy", reward=Breaks(after=10), no_signal="refill", refill_limit=2)
    with pytest.raises(RewardError, match="no more"):
        train(data, tmp_path)
    kept = [json.loads(x) for x in (tmp_path / "failed_round.jsonl").read_text().splitlines()]
    assert len(lines(tmp_path)) == 6
    assert len(kept) in (5, 6)  # the failed one, and perhaps one sampled beside it
    assert [g["reward_source"] for g in kept[:4]] == ["flat@1"] * 4
    for g in kept:
        assert (g["source"], g["round"], g["policy_version"]) == ("onpolicy", 1, 4)


def test_a_failure_of_the_true_reward_keeps_the_round(tmp_path):
    """It is asked when everything is sampled and scored already."""
    task = TokenBandit(seed=0, offline_prompts=6, train_prompts=5)
    task.true_reward = lambda: Breaks(after=5)
    reward = Flat()
    reward.name = "stand_in"
    with pytest.raises(RewardError, match="no more"):
        train(source("onpolicy", task=task, reward=reward), tmp_path)
    kept = [json.loads(x) for x in (tmp_path / "failed_round.jsonl").read_text().splitlines()]
    assert len(lines(tmp_path)) == 4  # round 0
    assert [g["round"] for g in kept] == [1] * 4
    assert all(r["reward"] is not None for g in kept for r in g["responses"])


def test_a_failure_of_an_annotation_keeps_the_round_and_no_other(tmp_path):
    module = dpo()
    annotate = module.annotate

    def fails_later(round, forward):
        if round.index:
            raise RuntimeError("out of memory")
        return annotate(round, forward)

    module.annotate = fails_later
    with pytest.raises(RuntimeError, match="out of memory"):
        train(source("onpolicy"), tmp_path, module)
    kept = [json.loads(x) for x in (tmp_path / "failed_round.jsonl").read_text().splitlines()]
    assert [g["round"] for g in kept] == [1] * 4
    assert [g["prompt_ids"] for g in kept] != [g["prompt_ids"] for g in lines(tmp_path)]


def test_a_round_without_any_signal_counts_steps_and_changes_nothing(tmp_path):
    module = REINFORCE(HFPolicy(gpt_nano()))
    module.policy.load()
    before = [p.detach().clone() for p in module.policy.parameters()]
    data = source("onpolicy", reward=Flat(), no_signal="refill", refill_limit=1)
    after, watch, _ = train(data, tmp_path, module)
    assert same(before, after)
    assert len(watch.batches) == data.total_steps == 8
    assert all(r.counts["data/unfilled"] == 4 for r in watch.rounds)


@pytest.mark.parametrize("stop", [3, 5])
def test_resume_with_refilled_rounds_is_bitwise(tmp_path, stop):
    def data():
        return source("onpolicy", reward=Coarse(), no_signal="refill", refill_limit=3)

    whole, _, _ = train(data(), tmp_path / "whole")
    train(data(), tmp_path / "run", stop=stop)
    again, _, _ = train(data(), tmp_path / "run", ckpt_path=tmp_path / "run" / "stopped.ckpt")
    assert same(whole, again)
    for name in ("samples.jsonl", "metrics.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"no_signal": "drop"}, "keep or refill"),
        ({"refill_limit": -1}, "refill_limit must be a whole number from 0"),
        ({"no_signal": "refill", "responses": 1}, "responses_per_prompt=1"),
    ],
)
def test_refilling_that_cannot_be_is_refused(options, words):
    with pytest.raises(Refusal, match=words):
        source("onpolicy", **options)


# --------------------------------------------------------------------------- importance weights


def test_effective_size_and_chi_square_by_hand():
    weights = importance_weights(torch.tensor([0.0, math.log(3.0)]))  # 1 and 3
    mean, square = weights.mean().item(), weights.square().mean().item()
    assert effective_share(mean, square) == pytest.approx(4 / 5)  # 16 / (2 x 10)
    assert chi_square(mean, square) == pytest.approx(2.0)  # (0 + 4) / 2
    assert importance_weights(torch.tensor([1e6])).square().isfinite().all()
    assert effective_share(0.0, 0.0) == 0.0


def test_logged_weights_are_those_of_the_policy_over_the_behaviour(tmp_path):
    """The last step's numbers, computed again from the weights before it."""
    data = source("mixed", rounds=1, reuse=2, batch_size=4)
    module = dpo()
    before = {}

    class Spy(type(module)):
        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                before[batch_idx, self.trainer.current_epoch] = self.policy(batch.tokens).logps
            super().training_step(batch, batch_idx)

    module.__class__ = Spy
    _, watch, _ = train(data, tmp_path, module)
    batch, info = watch.batches[-1], watch.infos[-1]
    now = before[0, 1].split(batch.tokens.lengths)
    then = batch.notes.token["behaviour_logps"].split(batch.tokens.lengths)
    gaps = torch.stack([(a - b).sum() for a, b in zip(now, then, strict=True)]).double()
    w = gaps.exp()
    assert info["importance/weight"] == pytest.approx(w.mean().item(), rel=1e-5)
    assert info["importance/ess"] == pytest.approx((w.sum() ** 2 / (len(w) * (w**2).sum())).item())
    assert info["importance/chi_square"] == pytest.approx(((w - 1) ** 2).mean().item(), rel=1e-4)
    assert info["importance/kl"] == pytest.approx(-gaps.mean().item(), rel=1e-4)
    assert info["importance/ess"] < 1 - 1e-4
    first = watch.infos[0]
    assert first["importance/ess"] == pytest.approx(1, abs=1e-6)
    assert first["importance/kl"] == pytest.approx(0, abs=1e-5)
    assert "importance/weight_square" not in info


@pytest.mark.parametrize("reuse", [1, 2])
def test_ratios_are_to_the_training_forward_where_samples_were_rounded(tmp_path, reuse):
    def enlarge(model):
        for p in model.parameters():
            p.data.mul_(5.0)  # far from uniform: rounding shows

    def policy():
        return HFPolicy(gpt_nano(), initialise=enlarge)

    data = source("onpolicy", rounds=1, reuse=reuse, batch_size=4)
    data.sampler = NativeSampler(max_new_tokens=9, precision="bfloat16")
    _, watch, _ = train(data, tmp_path, GRPO(policy()))
    batch, info = watch.batches[0], watch.infos[0]
    with torch.no_grad():
        exact = policy()(batch.tokens).logps
    gap = (batch.notes.token["behaviour_logps"] - exact).abs().mean()
    assert gap > 1e-3
    assert info["sampling/logp_difference"] == pytest.approx(gap.item(), rel=1e-3)
    assert info["ratio/mean"] == pytest.approx(1, abs=1e-6)
    if reuse > 1:  # else it is the present value itself
        torch.testing.assert_close(batch.notes.token["old_logps"], exact, atol=1e-6, rtol=1e-5)


def test_numbers_do_not_depend_on_micro_batches(tmp_path):
    found = []
    for budget in (None, 40):
        data = source("mixed", rounds=1, reuse=2, micro_batch_tokens=budget)
        found.append(train(data, tmp_path / str(budget))[1].infos[-1])
    for name in ("importance/weight", "importance/ess", "importance/chi_square", "importance/kl"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-3, abs=1e-6)


def test_unknown_behaviours_are_left_out(tmp_path):
    class Forgetful(TokenBandit):
        def offline(self):
            answers = [Response(ids=[n] * 9, rank=n) for n in range(2)]
            return [Group(prompt=p, responses=answers) for p in self.prompts()]

    data = source("mixed", task=Forgetful(seed=0), rounds=1, reuse=1, batch_size=4)
    _, watch, _ = train(data, tmp_path)
    known = watch.batches[0].notes.token["behaviour_logps"].isfinite()
    assert known.sum() == 2 * 3 * 9 and (~known).sum() == 2 * 2 * 9
    info = watch.infos[0]
    assert info["importance/weight"] == pytest.approx(1, abs=1e-5)
    assert 0 <= info["sampling/logp_difference"] < 1e-4
    with pytest.raises(Refusal, match=r"no behaviour log-probs \(prompt \d+\)"):
        data.check(REINFORCE(HFPolicy(gpt_nano()), importance="token"))
    with pytest.raises(Refusal, match=r"needs a reward for every response"):
        data.check(RWR(HFPolicy(gpt_nano())))


# --------------------------------------------------------------------------- scored rows, reuse


@pytest.mark.parametrize("kind", ["offline", "mixed"])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: RWR(p),
        lambda p: BestOfN(p),
        lambda p: REINFORCE(p, importance="token"),
        lambda p: REINFORCE(p, importance="response", importance_cap=2.0),
    ],
    ids=["rwr", "best_of_n", "reinforce_token", "reinforce_response"],
)
def test_scored_rows_feed_objectives_on_rewards(tmp_path, kind, make):
    module = make(HFPolicy(gpt_nano()))
    module.policy.load()
    before = [p.detach().clone() for p in module.policy.parameters()]
    after, watch, _ = train(source(kind, rounds=1), tmp_path, module)
    assert not same(before, after)
    assert all(math.isfinite(i["loss"]) for i in watch.infos)


def test_importance_weights_of_stored_samples_are_against_their_behaviour(tmp_path):
    """Not against the policy at the start of the round: the second round tells them apart."""
    seen = []

    class Spy(REINFORCE):
        def token_loss(self, logps, old_logps, advantages, tokens):
            seen.append(old_logps.clone())
            return super().token_loss(logps, old_logps, advantages, tokens)

    data = source("mixed", rounds=2, reuse=1, batch_size=4)
    _, watch, _ = train(data, tmp_path, Spy(HFPolicy(gpt_nano()), importance="token"))
    for round, used in zip(watch.rounds, seen, strict=True):
        sampled = [x for r in round.kept() for x in r.behaviour_logps]
        assert used.tolist() == pytest.approx(sampled)


@pytest.mark.parametrize(("importance", "said"), [("none", True), ("token", False)])
def test_several_passes_with_a_loss_for_one_are_said(tmp_path, caplog, importance, said):
    module = REINFORCE(HFPolicy(gpt_nano()), importance=importance)
    with caplog.at_level(logging.WARNING, logger="lit_pref"):
        train(source("onpolicy", rounds=1, reuse=2), tmp_path, module)
    found = [r.message for r in caplog.records if "data.reuse=2" in r.message]
    assert len(found) == said
    if said:
        assert "set objective.importance=token, or use data.reuse=1" in found[0]


def test_one_pass_needs_no_words(tmp_path, caplog):
    train(source("onpolicy", rounds=1, reuse=1), tmp_path, REINFORCE(HFPolicy(gpt_nano())))
    assert not [r for r in caplog.records if "data.reuse" in r.message]


@pytest.mark.parametrize(
    ("how", "module", "words"),
    [
        ({"temperature": 0.7}, lambda p: REINFORCE(p), "temperature=0.7 samples"),
        ({"temperature": 0.7}, lambda p: REINFORCE(p, importance="token"), None),
        ({"top_p": 0.9}, lambda p: GRPO(p), "top_p=0.9 samples"),
        ({"temperature": 0.7}, lambda p: DPO(p, reference=FrozenReference()), None),
        ({}, lambda p: REINFORCE(p), None),
    ],
)
def test_samples_of_another_distribution_are_said(tmp_path, caplog, how, module, words):
    """Not where the loss weighs them, or takes samples of anything."""
    data = source("onpolicy", rounds=1, reuse=1)
    data.sampler = NativeSampler(max_new_tokens=9, **how)
    with caplog.at_level(logging.WARNING, logger="lit_pref"):
        train(data, tmp_path, module(HFPolicy(gpt_nano())))
    found = [r.message for r in caplog.records if "its gradient is biased" in r.message]
    assert len(found) == (words is not None)
    if words is not None:
        assert words in found[0] and "use sampler.temperature=1" in found[0]
        assert ("objective.importance=token" in found[0]) == ("REINFORCE" in found[0])


# --------------------------------------------------------------------------- provenance


def test_every_group_says_where_it_is_from(tmp_path):
    _, watch, _ = train(source("mixed"), tmp_path)
    fresh, stored = watch.rounds[1].groups[0], watch.rounds[1].groups[2]
    assert (fresh.source, fresh.round, fresh.policy_version, fresh.born) == ("onpolicy", 1, 4, 4)
    assert (stored.source, stored.policy_version, stored.born) == ("offline", 0, 0)
    for g in (fresh, stored):
        assert g.sampling["temperature"] == 1.0
        assert g.reward_source == "token_bandit/r1@1/response"
        again = Group.from_state(g.state())
        assert again == g


class Told(Watch):
    def __init__(self):
        super().__init__()
        self.stages = []

    def on_progress(self, stage, done, total):
        self.stages.append((stage, done, total))


def test_the_pass_of_the_reference_is_told_of_as_it_goes(tmp_path, monkeypatch):
    told = Told()
    monkeypatch.setattr("source_runs.Watch", lambda stop: told)
    train(source("offline", micro_batch_tokens=40), tmp_path)
    passes = [x for x in told.stages if x[0] == "annotating"]
    assert passes[-1][1] == passes[-1][2] == sum(sum(keep) for keep in told.rounds[0].keep)
    assert 0 < passes[0][1] < passes[-1][1]  # not at its end alone
