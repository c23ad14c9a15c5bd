"""Groups that are never trained on, and what a reward model makes of them."""

import json
from pathlib import Path

import lightning as L
import pytest
import torch

from lit_pref.callbacks import Evaluation
from lit_pref.data import OfflineDataModule, OnPolicyDataModule
from lit_pref.data.task_set import round_size
from lit_pref.objectives import DPO, KTO, RewardModel
from lit_pref.policies import FrozenReference, HFPolicy, gpt_nano
from lit_pref.sampling import NativeSampler
from lit_pref.tasks import TokenBandit
from lit_pref.types import Group, Prompt, Refusal, Response


class Stored(TokenBandit):
    """The bandit's prompts with stored pairs: a low token is chosen, a high one rejected."""

    def offline(self):
        return [
            Group(
                prompt=Prompt(id=n, text=str(n), ids=[n]),
                responses=[
                    Response(ids=[n % 10] * 9, rank=0),
                    Response(ids=[90 + n % 10] * 9, rank=1),
                ],
            )
            for n in range(25)
        ]


def offline(task, **options):
    sizes = {"responses_per_prompt": 3, "batch_size": 2, **options}
    return OfflineDataModule(
        task, sampler=NativeSampler(max_new_tokens=9), reward=task.true_reward(), **sizes
    )


def fit(objective, data, path=None, callbacks=(), ckpt_path=None):
    wanted = data.trainer_kwargs()
    wanted["callbacks"] += callbacks
    trainer = L.Trainer(
        **wanted,
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(objective, datamodule=data, ckpt_path=ckpt_path)
    if path is not None:
        trainer.save_checkpoint(path)
    return trainer


def test_the_last_tenth_of_stored_pairs_is_held_out():
    data = offline(Stored(seed=0), held_out=0.1)
    assert [g.prompt.id for g in data.held_out_groups] == [23, 24]  # round(2.5) is 2
    assert data.stored.size == 23
    assert data.prompts_per_round == 22
    assert data.left_out == 1
    fit(RewardModel(HFPolicy(gpt_nano())), data)
    assert {g.prompt.id for g in data.round.groups} < set(range(23))


def test_groups_that_no_whole_batch_has_room_for_are_said(caplog):
    caplog.set_level("INFO", logger="lit_pref.data")
    said = "1 of 23 groups are left out of each round"
    offline(Stored(seed=0), held_out=0.1)
    assert said in caplog.text and "divides 23 uses all" in caplog.text
    caplog.clear()
    round_size(10, 23, 2, what="set")  # rounds of a given size go on through the set
    round_size("all", 22, 2, what="set")
    assert not caplog.records


def test_at_least_one_pair_is_held_out_and_none_by_default():
    assert len(offline(Stored(seed=0), held_out=0.001).held_out_groups) == 1
    data = offline(Stored(seed=0))
    assert data.held_out_groups == []
    assert data.stored.size == 25


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(Refusal, match=r"data\.held_out"):
        offline(Stored(seed=0), held_out=share)


def test_a_bandit_samples_its_validation_prompts_once():
    data = offline(TokenBandit(seed=0, validation_prompts=5), held_out=0.1)
    evaluation = Evaluation(every_n_rounds=1)
    fit(RewardModel(HFPolicy(gpt_nano())), data, callbacks=[evaluation])
    assert [g.prompt.id for g in data.held_out_groups] == [0, 20, 40, 60, 80]
    assert all(len(g.responses) == 3 for g in data.held_out_groups)
    assert data.counters == {"samples": 30, "reward_queries": 30, "eval_queries": 15}
    assert set(evaluation.first) == {"val/accuracy", "val/margin", "val/loss"}
    assert 0 <= evaluation.first["val/accuracy"] <= 1


def test_a_reward_model_learns_pairs_that_it_never_saw(tmp_path):
    data = offline(Stored(seed=0), held_out=0.2, reuse=4)
    evaluation = Evaluation(every_n_rounds=1)
    module = RewardModel(HFPolicy(gpt_nano()))
    before = HFPolicy(gpt_nano()).load().model
    fit(module, data, callbacks=[evaluation])
    assert evaluation.last["val/accuracy"] == 1.0
    assert evaluation.last["val/loss"] < evaluation.first["val/loss"]
    after = module.policy.model
    assert torch.equal(after.lm_head.weight, before.lm_head.weight)
    assert not torch.equal(after.transformer.wte.weight, before.transformer.wte.weight)
    module.export(str(tmp_path))
    config = json.loads(Path(tmp_path / "config.json").read_text())
    assert config["architectures"] == ["GPT2ForSequenceClassification"]


def test_a_resumed_reward_model_goes_on_bitwise(tmp_path):
    def parts(reuse):
        data = offline(TokenBandit(seed=0, validation_prompts=5), held_out=0.1, reuse=reuse)
        return RewardModel(HFPolicy(gpt_nano())), data

    whole, data = parts(2)
    fit(whole, data)
    half, _data = parts(2)
    _data.max_steps = 5
    fit(half, _data, path=tmp_path / "half.ckpt")
    rest, again = parts(2)
    fit(rest, again, ckpt_path=tmp_path / "half.ckpt")
    states = [m.state_dict() for m in (whole, rest)]
    assert states[0].keys() == states[1].keys()
    assert "score_head.weight" in states[0]
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))
    held = [[g.state() for g in d.held_out_groups] for d in (data, again)]
    assert held[0] == held[1]


def test_a_reward_model_refuses_fresh_samples():
    task = TokenBandit(seed=0)
    data = OnPolicyDataModule(
        task,
        sampler=NativeSampler(max_new_tokens=9),
        reward=task.true_reward(),
        prompts_per_round=2,
        responses_per_prompt=2,
        batch_size=2,
    )
    with pytest.raises(Refusal, match="use data=offline"):
        fit(RewardModel(HFPolicy(gpt_nano())), data)


def test_kto_refuses_batches_of_one_group_before_weights_load():
    policy = HFPolicy(gpt_nano())
    with pytest.raises(Refusal, match=r"data\.batch_size=1"):
        fit(KTO(policy, reference=FrozenReference()), offline(Stored(seed=0), batch_size=1))
    assert policy.model is None


def test_other_objectives_train_on_the_rest_too():
    data = offline(Stored(seed=0), held_out=0.1)
    fit(DPO(HFPolicy(gpt_nano()), reference=FrozenReference()), data)
    assert {g.prompt.id for g in data.round.groups}.isdisjoint({23, 24})
