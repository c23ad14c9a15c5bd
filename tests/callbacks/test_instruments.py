"""Instruments in a run: what they say is right, and they change nothing."""

import math
from types import SimpleNamespace

import pytest
import torch
from tests_callbacks_support import FewResponses, Reference, policy

from lit_pref.callbacks import (
    AgainstReference,
    Evaluation,
    GradientParts,
    Occasion,
    PairProbe,
    SampleStatistics,
)
from lit_pref.callbacks.pair_probe import best_and_worst
from lit_pref.data import OfflineDataModule
from lit_pref.functional.instruments import enumerate_responses
from lit_pref.objectives import DPO, KTO, PPO, RewardModel, SimPO
from lit_pref.types import FlatTokens, Group, Prompt, Refusal, Response


def everything():
    return [
        Evaluation(every_n_rounds=1, responses=2),
        SampleStatistics(distinct=[1, 2], entropy="distribution"),
        PairProbe(source="sampled", own=3),
        AgainstReference(responses=3),
        GradientParts(every_n_steps=2),
    ]


def weights(module):
    return torch.cat([p.detach().reshape(-1) for p in module.policy.parameters()])


def values(rows, name):
    return [float(r[name]) for r in rows if r.get(name)]


@pytest.mark.parametrize("kind", [DPO, KTO, PPO])
def test_nothing_of_training_changes(fit, tmp_path, kind):
    """Weights, samples and training metrics are bitwise those of a run that measures less."""
    seen = {}
    for name, callbacks in (("plain", [Evaluation(every_n_rounds=0)]), ("all", everything())):
        done = fit(kind(policy(), reference=Reference()), callbacks, folder=tmp_path / name)
        training = [
            {k: r[k] for k in ("step", "samples", "reward_queries", "loss", "grad_norm")}
            for r in done.rows
        ]
        samples = (tmp_path / name / "samples.jsonl").read_bytes()
        seen[name] = weights(done.module), samples, training
    assert torch.equal(seen["plain"][0], seen["all"][0])
    assert seen["plain"][1:] == seen["all"][1:]


def all_logps(model, prompt):
    every = list(enumerate_responses(5, 2))
    group = Group(prompt=prompt, responses=[Response(ids=ids) for ids in every])
    tokens = FlatTokens.from_groups([group])
    logps = model.token_logps(tokens).logps.detach().double()
    return logps.view(-1, 2).sum(1)


def test_kl_is_exact_where_responses_can_be_listed(fit):
    done = fit(DPO(policy(), reference=Reference()), everything())
    reverse, forward = [], []
    for prompt in FewResponses().prompts():
        p = all_logps(done.module.policy, prompt)
        q = all_logps(done.module.reference.copy, prompt)
        reverse.append(float((p.exp() * (p - q)).sum()))
        forward.append(float((q.exp() * (q - p)).sum()))
    for name, wanted in (("val/kl", reverse), ("val/forward_kl", forward)):
        last = [values(done.rows, name + end)[-1] for end in ("", "_low", "_high")]
        assert last == pytest.approx([sum(wanted) / 4] * 3, rel=1e-5)


def test_kl_by_sampling_has_an_interval_around_the_exact_one(fit):
    statistics = SampleStatistics(exact_limit=0)
    callbacks = [Evaluation(responses=200), statistics, AgainstReference(responses=200)]
    done = fit(DPO(policy(), reference=Reference()), callbacks, rounds=1)
    exact = Occasion(done.trainer, done.module, None)
    from lit_pref.callbacks.sample_statistics import exact_divergences

    for name, numbers in exact_divergences(exact).items():
        low, high = (values(done.rows, f"val/{name}{end}")[-1] for end in ("_low", "_high"))
        mean = values(done.rows, f"val/{name}")[-1]
        assert low < mean < high
        assert abs(mean - sum(numbers) / 4) < 0.15 * sum(numbers) / 4


def test_entropy_of_whole_distributions(fit):
    done = fit(DPO(policy(), reference=Reference()), everything(), rounds=1)
    measured = done.data.measure(done.module, done.data.validation_prompts, responses=2)
    tokens = FlatTokens.from_groups(measured.groups)
    entropy = done.module.policy.token_logps(tokens, stats=("entropy",)).entropy
    assert values(done.rows, "val/next_token_entropy")[-1] == pytest.approx(entropy.mean().item())


def test_the_probe_compares_with_the_reference_before_training(fit):
    probe = PairProbe(source="sampled", own=3, floor=-1.0)
    done = fit(DPO(policy(), reference=Reference()), [Evaluation(), probe])
    pairs = probe.groups
    assert 1 <= len(pairs) <= 4
    for group in pairs:
        assert group.responses[0].reward > group.responses[1].reward

    def logps(model):
        tokens = FlatTokens.from_groups(pairs)
        return model.token_logps(tokens).logps.detach().view(-1, 2).sum(1)

    now, before = logps(done.module.policy), logps(done.module.reference.copy)
    change = (now - before).double()
    wanted = {
        "chosen_change": change[::2].mean(),
        "rejected_change": change[1::2].mean(),
        "chosen_fell": (change[::2] < -1e-4).double().mean(),
        "coverage": (now[::2] / 2 >= -1.0).double().mean(),
    }
    for name, value in wanted.items():
        last = values(done.rows, f"probe/{name}")[-1]
        assert last == pytest.approx(float(value), abs=1e-5), name
    assert done.rows[0]["probe/chosen_change"] != "0"  # the reference is another model


def test_where_the_mass_went_is_the_greedy_continuation_too(fit):
    done = fit(
        DPO(policy(), reference=Reference()), [Evaluation(), PairProbe(source="sampled", own=9)]
    )
    module = done.module
    best = []
    for group in done.trainer.callbacks[2].groups:
        ids = list(group.prompt.ids)
        for _ in range(2):
            logits, _ = module.policy.prefill([ids], 1)
            ids.append(int(logits.argmax()))
        tokens = FlatTokens.from_groups(
            [Group(prompt=group.prompt, responses=[Response(ids=ids[1:])])]
        )
        best.append([float(m.token_logps(tokens).logps.sum())
                     for m in (module.policy, module.reference.copy)])  # fmt: skip
    ours, theirs = (sum(column) / len(best) for column in zip(*best, strict=True))
    assert values(done.rows, "probe/greedy_logp")[-1] == pytest.approx(ours, abs=1e-5)
    assert values(done.rows, "probe/greedy_change")[-1] == pytest.approx(ours - theirs, abs=1e-5)


def test_without_a_reference_the_probe_compares_with_the_start(fit):
    done = fit(SimPO(policy()), everything())
    assert values(done.rows, "probe/chosen_change")[0] == 0
    assert values(done.rows, "probe/chosen_change")[-1] != 0
    assert "probe/greedy_change" not in done.rows[0]
    assert "val/win_rate" not in done.rows[0]


class ScoresOnly:
    """A reference in closed form: it cannot be sampled from."""

    fingerprint = "closed"

    def __init__(self):
        self.inner = Reference()

    def prepare(self, policy):
        self.inner.prepare(policy)

    def to(self, device):
        self.inner.to(device)

    def token_logps(self, tokens, *, stats=()):
        return self.inner.token_logps(tokens, stats=stats)

    def advance(self, policy, round):
        pass


def test_a_reference_that_only_scores_has_no_win_rate(fit):
    done = fit(DPO(policy(), reference=ScoresOnly()), everything())
    assert values(done.rows, "val/forward_kl") and values(done.rows, "probe/greedy_change")
    assert "val/win_rate" not in done.rows[0]


def test_stored_pairs_cost_no_query(fit):
    sizes = {"data": OfflineDataModule, "prompts_per_round": "all", "batch_size": 3}
    done = fit(DPO(policy(), reference=Reference()), [Evaluation(), PairProbe()], **sizes)
    assert values(done.rows, "probe/chosen_change")
    assert done.data.counters["eval_queries"] == 4 * len(values(done.rows, "val/reward"))


def test_nothing_is_probed_without_stored_pairs(fit):
    done = fit(DPO(policy(), reference=Reference()), [Evaluation(), PairProbe()])
    assert not any(name.startswith("probe/") for name in done.rows[0])


def test_a_run_of_one_round_is_measured_between_passes(fit):
    sizes = {"data": OfflineDataModule, "prompts_per_round": "all", "batch_size": 3, "rounds": 1}
    for every, steps in ((2, [0, 4, 8, 10]), (0, [0, 10])):
        done = fit(DPO(policy(), reference=Reference()), [Evaluation(every_n_rounds=every)],
                   reuse=5, **sizes)  # fmt: skip
        assert [int(r["step"]) for r in done.rows if r["val/reward"]] == steps
    sizes["rounds"] = 2
    done = fit(DPO(policy(), reference=Reference()), [Evaluation()], reuse=2, **sizes)
    assert [int(r["step"]) for r in done.rows if r["val/reward"]] == [0, 4, 8]


def test_best_and_worst_by_rank_reward_or_label():
    def group(**columns):
        some = [Response(ids=[i], **{k: v[i] for k, v in columns.items()}) for i in range(3)]
        return Group(prompt=Prompt(id=0, text="", ids=[0]), responses=some)

    groups = [
        group(rank=[1, 0, 2]),
        group(reward=[3.0, 1.0, 2.0]),
        group(label=[False, True, False]),
        group(reward=[1.0, 1.0, 1.0]),
        group(),
    ]
    found = best_and_worst(groups, 9)
    assert [[r.ids[0] for r in g.responses] for g in found] == [[1, 2], [0, 1], [1, 0]]
    many = [group(rank=[0, 1, 2]) for _ in range(100)]
    assert len(best_and_worst(many, 10)) == 10


# --------------------------------------------------------------------------- win rates


class Longer:
    """Judges by the first token: 1 if it is larger, 0.5 if it is equal."""

    def __init__(self):
        self.calls = 0

    def compare(self, comparisons):
        self.calls += 1
        out = []
        for c in comparisons:
            assert [r.behaviour for r in c.group.responses] == ["policy", "reference"]
            x, y = (c.group.responses[k].ids[0] for k in (c.first, c.second))
            out.append((x > y) + 0.5 * (x == y))
        return out


def test_win_rate_against_samples_of_the_reference(fit):
    judge = Longer()
    against = AgainstReference(responses=2, comparer=judge)
    evaluation = Evaluation(responses=2)
    done = fit(DPO(policy(), reference=Reference()), [evaluation, against])
    theirs = evaluation.reference_samples.groups
    ours = done.data.measure(done.module, done.data.validation_prompts, responses=2).groups
    by_reward, by_judge = [], []
    for mine, other in zip(ours, theirs, strict=True):
        duels = [(a.reward, b.reward) for a in mine.responses for b in other.responses]
        by_reward.append(sum((a > b) + 0.5 * (a == b) for a, b in duels) / 4)
        x, y = mine.responses[0].ids[0], other.responses[0].ids[0]
        by_judge.append((x > y) + 0.5 * (x == y))
    assert values(done.rows, "val/win_rate")[-1] == sum(by_reward) / 4
    assert values(done.rows, "val/judge_win_rate")[-1] == sum(by_judge) / 4
    assert judge.calls == 3  # start, and two rounds


def test_the_reference_is_sampled_and_scored_once(fit):
    callbacks = [Evaluation(), AgainstReference(responses=2)]
    done = fit(DPO(policy(), reference=Reference()), callbacks)
    evaluations = len(values(done.rows, "val/reward"))
    assert done.data.counters["eval_queries"] == 4 * evaluations + 8


def test_a_comparer_that_returns_nonsense_is_refused(fit):
    class Wrong:
        def compare(self, comparisons):
            return [2.0]

    with pytest.raises(Refusal, match=r"must return 4 numbers in \[0, 1\]"):
        fit(
            DPO(policy(), reference=Reference()), [Evaluation(), AgainstReference(comparer=Wrong())]
        )
    with pytest.raises(Refusal, match="needs a method compare"):
        AgainstReference(comparer=object())


def test_a_reward_model_is_left_alone(fit):
    sizes = {
        "data": OfflineDataModule,
        "prompts_per_round": "all",
        "batch_size": 3,
        "held_out": 0.2,
    }
    done = fit(RewardModel(policy()), everything(), **sizes)
    assert values(done.rows, "val/accuracy")
    extra = [n for n in done.rows[0] if n.startswith(("probe/", "gradient/", "val/kl"))]
    assert extra == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SampleStatistics(distinct=[7]), "distinct takes numbers"),
        (lambda: SampleStatistics(entropy="x"), "sampled or distribution"),
        (lambda: PairProbe(source="x"), "stored or sampled"),
        (lambda: PairProbe(pairs=0), "at least 1"),
        (lambda: PairProbe(floor=1.0), "below 0"),
        (lambda: AgainstReference(responses=0), "at least 1"),
        (lambda: GradientParts(every_n_steps=0), "at least 1"),
    ],
)
def test_mistakes_are_refused(make, message):
    with pytest.raises(Refusal, match=message):
        make()


def test_every_number_is_finite(fit):
    done = fit(DPO(policy(), reference=Reference()), everything(), rounds=3)
    for row in done.rows:
        assert all(math.isfinite(float(v)) for v in row.values() if v)


def test_every_process_makes_as_many_exact_forwards(monkeypatch):
    """Shards of a model meet in each forward: one process with a prompt less would wait for ever."""
    from lit_pref.callbacks import sample_statistics as module

    monkeypatch.setattr(module, "_AT_ONCE", 50)  # 25 responses of 2 tokens: one prompt at once
    monkeypatch.setattr(module, "gather_strided", lambda rows, world: rows)
    calls = [[], []]
    for rank in (0, 1):

        def forward(which, tokens, rank=rank):
            calls[rank].append((which, tokens.num_responses))
            return SimpleNamespace(logps=torch.full((sum(tokens.lengths),), -math.log(5)))

        occasion = SimpleNamespace(
            data=SimpleNamespace(
                task=SimpleNamespace(eos_ids=()), micro_batch_tokens=None,
                sampler=SimpleNamespace(max_new_tokens=2),
                validation_prompts=FewResponses().prompts()[:3],
            ),
            module=SimpleNamespace(
                policy=SimpleNamespace(spec=SimpleNamespace(vocab_size=5)),
                forward_pass=lambda budget, forward=forward: forward,
            ),
            trainer=SimpleNamespace(global_rank=rank, world_size=2),
        )  # fmt: skip
        found = module.exact_divergences(occasion)
        assert found["kl"] == pytest.approx([0.0] * (2 - rank), abs=1e-6)
    assert calls[0] == [("policy", 25), ("reference", 25)] * 2
    assert calls[1] == [("policy", 25), ("reference", 25), ("policy", 0), ("reference", 0)]
