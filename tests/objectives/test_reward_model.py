import math

import pytest
import torch

from lit_pref.functional.score import reward_model_loss
from lit_pref.objectives import RewardModel
from lit_pref.policies.heads import ScalarHead
from lit_pref.policies.reference import FrozenReference
from lit_pref.testing.batches import StandInTrainer, forward_stats, make_batch, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy, tiny_groups
from lit_pref.types import FlatTokens, Refusal


def softplus(x):
    return math.log1p(math.exp(x))


def plain_scores(module, groups):
    """Scores with each response in a forward of its own."""
    out = []
    for group in groups:
        for r in group.responses:
            tokens = FlatTokens(
                prompt_ids=torch.tensor(group.prompt.ids),
                prompt_lengths=[len(group.prompt.ids)],
                response_ids=torch.tensor(r.ids),
                lengths=[len(r.ids)],
                prompt_of=[0],
            )
            hidden = module.policy(tokens, stats=("final_hidden",)).final_hidden[0]
            out.append((hidden * module.score_head.weight).sum().item())
    return out


class TestRewardModel(ObjectiveTester):
    objective = RewardModel

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        scores = plain_scores(module, round.groups)
        total = 0.0
        for n, group in enumerate(round.groups):
            rewards = [r.reward for r in group.responses]
            best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
            total += softplus(-(scores[4 * n + best] - scores[4 * n + worst]))
        assert whole_loss(module, batch) == pytest.approx(total / 8, rel=1e-6)

    def test_it_keeps_no_reference(self):
        assert self.module(reference=FrozenReference()).reference is None

    def test_pairs_of_held_out_groups(self):
        module, _ = self.prepared()
        groups = tiny_groups(groups=3, responses=2, seed=9, ranked=True)
        groups[0].responses[1].ids = list(groups[0].responses[0].ids)  # equal scores count half
        scores = plain_scores(module, groups)
        right = total = loss = 0.0
        for n, group in enumerate(groups):
            first = [r.rank for r in group.responses].index(0)
            gap = scores[2 * n + first] - scores[2 * n + 1 - first]
            right += 0.5 if n == 0 else float(gap > 0)
            total += gap
            loss += softplus(-gap)
        module.trainer = _Trainer()
        measured = module.measure_groups(groups)
        assert measured["val/accuracy"] == pytest.approx(right / 3)
        assert measured["val/margin"] == pytest.approx(total / 3, rel=1e-5)
        assert measured["val/loss"] == pytest.approx(loss / 3, rel=1e-5)
        assert module.measure_groups([]) == {}

    def test_processes_share_the_measuring(self):
        module, _ = self.prepared()
        groups = tiny_groups(groups=5, responses=3, seed=9)
        module.trainer = _Trainer()
        alone = module.measure_groups(groups)
        sent = []
        for rank in range(2):
            module.trainer = _Trainer(world_size=2, global_rank=rank)
            module.measure_groups(groups)
            sent += module.trainer.sent
        total = (sent[0] + sent[1]).tolist()
        assert [t / total[3] for t in total[:3]] == pytest.approx(list(alone.values()), rel=1e-5)

    def test_it_does_not_sample(self):
        with pytest.raises(Refusal, match="val/accuracy"):
            self.module().validation_step(None, 0)


class TestRewardModelWithEverything(ObjectiveTester):
    objective = RewardModel
    options = {
        "label_smoothing": 0.1,
        "margin_coef": 0.5,
        "centering": 0.01,
        "pairs": "all",
        "pair_mean": "group",
    }

    def make(self, policy, **shared):
        return super().make(policy, head=ScalarHead(init="normal", seed=3), **shared)

    def groups(self, *, seed=0, ranked=False):
        groups = super().groups(seed=seed, ranked=ranked)
        for n, group in enumerate(groups):
            group.margin = 0.25 * n
        return groups

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        scores = plain_scores(module, round.groups)
        total = 0.0
        for n, group in enumerate(round.groups):
            losses = []
            for i, a in enumerate(group.responses):
                for j, b in enumerate(group.responses):
                    if a.reward > b.reward:
                        s, t = scores[4 * n + i], scores[4 * n + j]
                        z = s - t - 0.5 * 0.25 * n
                        losses.append(0.9 * softplus(-z) + 0.1 * softplus(z) + 0.01 * (s + t) ** 2)
            total += sum(losses) / 6
        assert whole_loss(module, batch) == pytest.approx(total / 8, rel=1e-6)


class _Trainer(StandInTrainer):
    @property
    def datamodule(self):
        class Data:
            micro_batch_tokens = None

        return Data()


def test_numbers_by_hand():
    # 2 - 0.5 - 0.5 = 1: softplus(-1) = 0.3132617; centring 0.1 * 2.5^2 = 0.625.
    s = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.5], dtype=torch.float64)
    loss = reward_model_loss(s, t, margin=0.5, centering=0.1)
    assert loss.item() == pytest.approx(0.9382617, abs=1e-6)
    (grad,) = torch.autograd.grad(loss.sum(), s)
    assert grad.item() == pytest.approx(-1 / (1 + math.e) + 0.2 * 2.5)


def test_a_head_of_zeros_is_undecided():
    policy = TinyPolicy()
    module = RewardModel(policy, head=ScalarHead(init="zero"))
    module.configure_model()
    tokens = FlatTokens.from_groups(tiny_groups(groups=2))
    assert module.scores(forward_stats(module, tokens)).tolist() == [0.0] * 8


def test_head_is_a_parameter_group_of_its_own():
    module = RewardModel(TinyPolicy())
    module.configure_model()
    groups = module.parameter_groups()
    assert len(groups) == 2
    assert groups[1]["params"] == [module.score_head.weight]


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.5},
        {"margin_coef": -1.0},
        {"centering": -1.0},
        {"negative_weight": 0.5},
        {"pairs": "none"},
    ],
)
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        RewardModel(TinyPolicy(), **options)
