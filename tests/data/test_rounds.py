"""Rounds, passes and batches: counters, ages, orders, and what a checkpoint holds."""

import itertools
import json

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from lit_pref.callbacks import MetricsCSV, RunFiles
from lit_pref.data import OfflineDataModule, OnPolicyDataModule
from lit_pref.objectives import DPO, REINFORCE
from lit_pref.policies import FrozenReference, HFPolicy, gpt_nano
from lit_pref.sampling import NativeSampler
from lit_pref.tasks import TokenBandit
from lit_pref.types import Refusal


class Watch(L.Callback):
    """Remembers what each step saw."""

    def __init__(self):
        self.steps = []
        self.rounds = []

    def setup(self, trainer, pl_module, stage):
        trainer.datamodule.listeners.append(self)

    def on_pass_start(self, index, number):
        pass

    def on_progress(self, stage, done, total):
        pass

    def on_round(self, round):
        self.rounds.append(round)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append(
            (batch.index, dict(batch.info), dict(pl_module.latest), trainer.global_step)
        )


def train(objective, data, tmp_path, **options):
    watch = Watch()
    wanted = data.trainer_kwargs()
    wanted["callbacks"] += [watch, RunFiles(tmp_path)]
    trainer = L.Trainer(
        **wanted,
        logger=[MetricsCSV(tmp_path)],
        log_every_n_steps=1,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(objective, datamodule=data)
    return trainer, watch


def onpolicy(**sizes):
    task = TokenBandit(seed=0)
    defaults = {
        "prompts_per_round": 4, "responses_per_prompt": 3, "batch_size": 2, "reuse": 2, "rounds": 3,
    }  # fmt: skip
    return OnPolicyDataModule(
        task,
        sampler=NativeSampler(max_new_tokens=9),
        reward=task.true_reward(),
        **{**defaults, **sizes},
    )


def policy():
    return HFPolicy(gpt_nano())


def dpo(**options):
    return DPO(policy(), reference=FrozenReference(), pairs="all", **options)


@pytest.mark.parametrize(
    ("rounds", "reuse", "prompts", "responses", "batch"),
    [(3, 2, 4, 3, 2), (2, 1, 4, 2, 4), (1, 3, 6, 4, 1), (2, 2, 6, 2, 3)],
)
def test_counters(tmp_path, rounds, reuse, prompts, responses, batch):
    data = onpolicy(
        rounds=rounds, reuse=reuse, prompts_per_round=prompts,
        responses_per_prompt=responses, batch_size=batch,
    )  # fmt: skip
    trainer, watch = train(dpo(), data, tmp_path)
    assert trainer.global_step == rounds * reuse * prompts // batch == data.total_steps
    assert data.counters["reward_queries"] == rounds * prompts * responses
    assert data.counters["samples"] == rounds * prompts * responses
    assert len(watch.rounds) == rounds
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert len(lines) == rounds * prompts
    assert all(len(json.loads(line)["responses"]) == responses for line in lines)


def test_every_group_is_used_once_a_pass_and_orders_differ(tmp_path):
    data = onpolicy(prompts_per_round=8, batch_size=2, reuse=3, rounds=1)
    orders = []
    original = data.batch

    def spy(position):
        batch = original(position)
        orders.append((batch.index[1], position, tuple(batch.tokens.prompt_ids.tolist())))
        return batch

    data.batch = spy
    train(REINFORCE(policy()), data, tmp_path)
    prompts = sorted(g.prompt.ids[0] for g in data.round.groups)
    passes = [[p for number, _, ids in orders if number == n for p in ids] for n in range(3)]
    for seen in passes:
        assert sorted(seen) == prompts
    assert len({tuple(p) for p in passes}) == 3


def test_ages_and_uses(tmp_path):
    _, watch = train(dpo(), onpolicy(), tmp_path)
    for (_, number, position), info, _, step in watch.steps:
        since_round = (step - 1) % 4
        assert info["age/mean"] == info["age/max"] == since_round == number * 2 + position
        assert info["uses"] == number


def test_strictly_on_policy_has_age_zero_and_ratio_one(tmp_path):
    data = onpolicy(reuse=1, batch_size=4, rounds=3)
    ratios = []

    class Spy(REINFORCE):
        uses_old_logps = True

        def token_loss(self, logps, old_logps, advantages, tokens):
            ratios.append((logps - old_logps).exp().detach())
            return super().token_loss(logps, old_logps, advantages, tokens)

    _, watch = train(Spy(policy()), data, tmp_path)
    assert all(info["age/max"] == 0 for _, info, _, _ in watch.steps)
    assert all(bool((r == 1).all()) for r in ratios)
    assert all(r.strict and "old_logps" not in r.notes.token for r in watch.rounds)


def test_reused_rounds_have_old_logps(tmp_path):
    class Spy(REINFORCE):
        uses_old_logps = True

    _, watch = train(Spy(policy()), onpolicy(), tmp_path)
    for round in watch.rounds:
        assert not round.strict
        assert round.notes.token["old_logps"].shape == round.notes.token["sampled_logps"].shape
        torch.testing.assert_close(
            round.notes.token["old_logps"], round.notes.token["sampled_logps"], atol=1e-4, rtol=0
        )


def test_samples_do_not_depend_on_how_they_are_batched(tmp_path):
    texts = []
    for rows in (1, 5, 100):
        data = onpolicy(rounds=1)
        data.sampler.max_rows = rows
        train(dpo(), data, tmp_path)
        texts.append([r.ids for g in data.round.groups for r in g.responses])
    assert texts[0] == texts[1] == texts[2]


def test_prompt_set_smaller_than_a_round_wraps_with_other_samples(tmp_path):
    task = TokenBandit(seed=0, train_prompts=2)
    data = OnPolicyDataModule(
        task, sampler=NativeSampler(max_new_tokens=9), reward=task.true_reward(),
        prompts_per_round=6, responses_per_prompt=2, batch_size=6,
    )  # fmt: skip
    train(dpo(), data, tmp_path)
    groups = data.round.groups
    assert sorted(g.prompt.id for g in groups) == sorted(p.id for p in task.prompts() * 3)
    answers = [tuple(r.ids) for g in groups for r in g.responses]
    assert len(set(answers)) == len(answers)


def test_rounds_walk_through_all_prompts():
    from lit_pref.data.streams import PromptStream

    prompts = TokenBandit(seed=0, train_prompts=10).prompts()
    seen = [p.id for r in range(5) for p in PromptStream(prompts=prompts, seed=3).round(r, 4)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == sorted(p.id for p in prompts)
    assert seen[:10] != seen[10:]
    assert seen == [
        p.id for r in range(5) for p in PromptStream(prompts=prompts, seed=3).round(r, 4)
    ]
    assert seen != [
        p.id for r in range(5) for p in PromptStream(prompts=prompts, seed=4).round(r, 4)
    ]


def test_offline_is_one_round_and_no_new_queries(tmp_path):
    task = TokenBandit(seed=0, offline_prompts=7)
    data = OfflineDataModule(
        task, sampler=NativeSampler(max_new_tokens=9), reward=task.true_reward(),
        responses_per_prompt=3, batch_size=2, reuse=4,
    )  # fmt: skip
    trainer, watch = train(dpo(), data, tmp_path)
    assert data.left_out == 1
    assert len(watch.rounds) == 1
    assert trainer.global_step == 4 * 3
    assert data.counters["samples"] == 21  # the set is sampled once
    assert {g.policy_version for g in watch.rounds[0].groups} == {0}
    assert [info["age/max"] for _, info, _, _ in watch.steps] == list(map(float, range(12)))


def test_offline_rounds_of_a_part_of_the_set(tmp_path):
    task = TokenBandit(seed=0, offline_prompts=6)
    data = OfflineDataModule(
        task, sampler=NativeSampler(max_new_tokens=9), reward=task.true_reward(),
        prompts_per_round=3, responses_per_prompt=2, batch_size=3, rounds=4,
    )  # fmt: skip
    _, watch = train(dpo(), data, tmp_path)
    rows = [tuple(data.stored_rows(r)) for r in range(4)]
    assert sorted(rows[0] + rows[1]) == sorted(rows[2] + rows[3]) == list(range(6))
    assert len(watch.rounds) == 4


def test_the_trainer_must_be_set_up_for_rounds():
    data = onpolicy()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=6, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(Refusal, match="trainer_kwargs"):
        trainer.fit(dpo(), datamodule=data)


def test_a_second_trainer_must_be_set_up_for_rounds_too(tmp_path):
    data = onpolicy(rounds=1, reuse=1)
    objective = dpo()
    train(objective, data, tmp_path)
    before = [p.detach().clone() for p in objective.policy.parameters()]
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(Refusal, match="trainer_kwargs"):
        trainer.fit(objective, datamodule=data)
    assert all(map(torch.equal, before, objective.policy.parameters()))


@pytest.mark.parametrize(
    "how",
    [
        lambda: {"precision": "16-true"},
        lambda: {"plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))},
    ],
)
def test_precision_with_loss_scaling_is_refused(tmp_path, how):
    with pytest.raises(Refusal, match="bf16-mixed"):
        train(dpo(), onpolicy(), tmp_path, **how())


@pytest.mark.parametrize(
    ("objective", "data", "words"),
    [
        (lambda: dpo(), lambda: onpolicy(responses_per_prompt=1), "at least 2 responses"),
        (
            lambda: REINFORCE(policy()),
            lambda: OfflineDataModule(
                TokenBandit(seed=0), sampler=NativeSampler(max_new_tokens=9), reward=None,
                responses_per_prompt=2, batch_size=2,
            ),
            "data=onpolicy",
        ),
    ],
)  # fmt: skip
def test_combinations_that_cannot_work_are_refused(objective, data, words):
    data = data()
    with pytest.raises(Refusal, match=words):
        data.check(objective())


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"batch_size": 3}, "nearest values that do: 1, 2, 4"),
        ({"rounds": 0}, "data.rounds"),
        ({"reuse": 1.5}, "data.reuse"),
        ({"micro_batch_tokens": 0}, "micro_batch_tokens"),
        ({"reward": None}, "needs a reward"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, words):
    task = TokenBandit(seed=0)
    arguments = {
        "reward": task.true_reward(), "prompts_per_round": 4, "responses_per_prompt": 2,
        "batch_size": 2, **sizes,
    }  # fmt: skip
    with pytest.raises(Refusal, match=words):
        OnPolicyDataModule(task, sampler=NativeSampler(max_new_tokens=9), **arguments)


def gradient(budget, reuse=1):
    """Gradient of one DPO step on a fixed round for a token budget."""
    torch.manual_seed(0)
    module = dpo(pair_mean="pooled")
    data = onpolicy(rounds=1, reuse=reuse, batch_size=4, micro_batch_tokens=budget)
    found = {}

    class Grab(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            found.update({n: p.grad.clone() for n, p in pl_module.named_parameters()})

    wanted = data.trainer_kwargs()
    wanted["callbacks"].append(Grab())
    module.optimizer_settings.clip_norm = None
    L.Trainer(
        **wanted, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, datamodule=data)  # fmt: skip
    return torch.cat([g.flatten() for g in found.values()])


def test_micro_batches_do_not_change_the_gradient():
    whole = gradient(None)
    assert whole.norm() > 0
    for budget in (1, 60, 100):
        part = gradient(budget)
        assert (part - whole).norm() / whole.norm() < 1e-6, budget


def test_a_batch_of_ties_counts_as_a_step_and_changes_nothing(tmp_path):
    class Flat:
        name, version = "flat", "1"

        def score(self, groups):
            return [0.5 for g in groups for _ in g.responses]

    data = onpolicy(rounds=2, reuse=1)
    data.reward = Flat()
    module = dpo()
    module.policy.load()
    before = [p.detach().clone() for p in module.parameters()]
    trainer, watch = train(module, data, tmp_path)
    assert trainer.global_step == 4
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert all(r.counts["data/groups_without_pair"] == 4 for r in watch.rounds)


def test_metrics_csv_has_a_row_per_step_in_order(tmp_path):
    import csv

    train(dpo(), onpolicy(), tmp_path)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [int(r["step"]) for r in rows] == list(range(13))
    assert list(rows[0])[:5] == ["step", "samples", "reward_queries", "round", "pass"]
    assert [int(r["round"]) for r in rows[1:]] == list(
        itertools.chain(*[[n] * 4 for n in range(3)])
    )
    assert [int(r["samples"]) for r in rows[1:]] == [12 * (int(r["round"]) + 1) for r in rows[1:]]
