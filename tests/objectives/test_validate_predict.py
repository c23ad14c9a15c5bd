"""``trainer.validate``, ``test`` and ``predict`` do what Lightning users expect."""

import lightning as L
import pytest
import torch

import lit_pref as lp
from lit_pref.callbacks import WholeFileIO
from lit_pref.data import OfflineDataModule, OnPolicyDataModule
from lit_pref.policies import gpt_nano
from lit_pref.types import Group


def parts(kind=OnPolicyDataModule, **sizes):
    task = lp.TokenBandit(seed=0, validation_prompts=40)
    policy = lp.HFPolicy(gpt_nano())
    data = kind(
        task,
        sampler=lp.NativeSampler(max_new_tokens=9, temperature=0.7),
        reward=task.true_reward(),
        responses_per_prompt=2,
        batch_size=5,
        **{"prompts_per_round": 5, "rounds": 2, **sizes},
    )
    return lp.DPO(policy, reference=lp.FrozenReference(), beta=0.1), data


def trainer_for(data, folder, *callbacks, **options):
    wanted = data.trainer_kwargs()
    wanted["callbacks"] += callbacks
    return L.Trainer(
        **wanted, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip


class Watch(L.Callback):
    """Counts Lightning's own validations."""

    def __init__(self):
        self.validations = 0

    def on_validation_start(self, trainer, pl_module):
        self.validations += 1


def test_validate_agrees_with_the_callback_before_and_after_fit(tmp_path):
    objective, data = parts()
    evaluation, watch = lp.Evaluation(), Watch()
    trainer = trainer_for(data, tmp_path, evaluation, watch)
    before = trainer.validate(objective, datamodule=data, verbose=False)[0]
    trainer.fit(objective, datamodule=data)
    assert watch.validations == 1  # the first line; fit ran none
    assert trainer.global_step == 2
    after = trainer.validate(objective, datamodule=data, verbose=False)[0]
    assert before.keys() == after.keys() == evaluation.first.keys()
    for name in before:
        assert before[name] == pytest.approx(evaluation.first[name], abs=1e-5), name
        assert after[name] == pytest.approx(evaluation.last[name], abs=1e-5), name
    assert before["val/kl"] == 0.0
    assert after["val/kl"] != 0.0


def test_validating_first_changes_nothing_of_the_training(tmp_path):
    weights = []
    for first in (False, True):
        objective, data = parts()
        trainer = trainer_for(data, tmp_path)
        if first:
            trainer.validate(objective, datamodule=data, verbose=False)
            trainer.predict(objective, datamodule=data)
        trainer.fit(objective, datamodule=data)
        weights.append([p.detach().clone() for p in objective.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_test_uses_the_tasks_test_prompts_and_other_draws(tmp_path):
    objective, data = parts()
    trainer = trainer_for(data, tmp_path)
    validated = trainer.validate(objective, datamodule=data, verbose=False)[0]
    tested = trainer.test(objective, datamodule=data, verbose=False)[0]
    assert {k.replace("val/", "test/") for k in validated} == set(tested)
    assert tested["test/reward"] != validated["val/reward"]
    data.task.test = lambda: data.task.validation()[:3]
    assert len(data.test_dataloader().prompts) == 3
    assert trainer.test(objective, datamodule=data, verbose=False)[0]["test/mean_length"] == 9


def test_predict_gives_scored_groups_sampled_as_in_training(tmp_path):
    objective, data = parts()
    trainer = trainer_for(data, tmp_path)
    batches = trainer.predict(objective, datamodule=data)
    groups = [g for batch in batches for g in batch]
    assert [g.prompt.id for g in groups] == [p.id for p in data.task.validation()]
    for group in groups:
        assert isinstance(group, Group)
        assert len(group.responses) == 2
        assert group.sampling["temperature"] == 0.7
        assert [r.reward for r in group.responses] == data.reward.score([group])
    data.predict_prompts = data.task.prompts()[:2]
    again = trainer.predict(objective, datamodule=data)
    assert [g.prompt.id for g in again[0]] == [p.id for p in data.predict_prompts]


@pytest.mark.parametrize("kind", [OnPolicyDataModule, OfflineDataModule])
def test_weights_of_a_checkpoint(tmp_path, kind):
    objective, data = parts(kind)
    trainer = trainer_for(data, tmp_path, plugins=[WholeFileIO()])
    trainer.fit(objective, datamodule=data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    wanted = trainer.validate(objective, datamodule=data, verbose=False)[0]
    fresh, again = parts(kind)
    other = trainer_for(again, tmp_path, plugins=[WholeFileIO()])
    found = other.validate(fresh, datamodule=again, verbose=False, ckpt_path=tmp_path / "a.ckpt")[0]
    assert found == pytest.approx(wanted)
    assert other.limit_val_batches == 1.0


def test_a_failed_fit_leaves_validation_as_it_was(tmp_path):
    objective, data = parts()
    trainer = trainer_for(data, tmp_path)

    def broken(groups):
        raise RuntimeError("no score")

    data.reward.score = broken
    with pytest.raises(RuntimeError, match="no score"):
        trainer.fit(objective, datamodule=data)
    assert trainer.limit_val_batches == 1.0


def test_without_our_data_the_message_says_so(tmp_path):
    objective, _ = parts()
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    with pytest.raises(lp.Refusal, match="pass datamodule="):
        trainer.validate(objective, dataloaders=[[1, 2]], verbose=False)


def test_without_a_reference_there_is_no_kl(tmp_path):
    _, data = parts()
    objective = lp.REINFORCE(lp.HFPolicy(gpt_nano()), baseline="none")
    found = trainer_for(data, tmp_path).validate(objective, datamodule=data, verbose=False)[0]
    assert "val/reward" in found and "val/kl" not in found
