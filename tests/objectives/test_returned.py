"""A loss method of the user's own that returns something else is told what it should return."""

import lightning as L
import pytest

import lit_pref as lp
from lit_pref.objectives import REINFORCE, RewardModel
from lit_pref.policies import gpt_nano


class MeanOfPairs(lp.DPO):
    def pair_loss(self, chosen, rejected, *, margin):
        losses, metrics = super().pair_loss(chosen, rejected, margin=margin)
        return losses.mean(), metrics


class NoMetrics(lp.DPO):
    def pair_loss(self, chosen, rejected, *, margin):
        return super().pair_loss(chosen, rejected, margin=margin)[0]


class MeanOfTokens(REINFORCE):
    def token_loss(self, logps, old_logps, advantages, tokens):
        return super().token_loss(logps, old_logps, advantages, tokens).mean()


class NoScore(RewardModel):
    def score_loss(self, chosen, rejected, *, margin):
        return None


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (MeanOfPairs, r"MeanOfPairs\.pair_loss must return one loss per pair.*\[\d+\]; got shape"),
        (NoMetrics, r"NoMetrics\.pair_loss must return two things.*return losses, \{\}; got Ten"),
        (MeanOfTokens, r"MeanOfTokens\.token_loss must return one loss per response token.*\[36\]"),
        (NoScore, r"NoScore\.score_loss must return one loss per pair.*got NoneType"),
    ],
)
def test_what_is_expected_is_said(kind, says, tmp_path):
    task = lp.TokenBandit(seed=0, offline_prompts=2)
    source = lp.OfflineDataModule if kind is NoScore else lp.OnPolicyDataModule
    size = {} if kind is NoScore else {"prompts_per_round": 2}
    data = source(
        task, sampler=lp.NativeSampler(max_new_tokens=9), reward=task.true_reward(),
        responses_per_prompt=2, batch_size=2, rounds=1, **size,
    )  # fmt: skip
    reference = {"reference": lp.FrozenReference()} if issubclass(kind, lp.DPO) else {}
    trainer = L.Trainer(
        **data.trainer_kwargs(), accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    with pytest.raises(ValueError, match=says):
        trainer.fit(kind(lp.HFPolicy(gpt_nano()), **reference), datamodule=data)
