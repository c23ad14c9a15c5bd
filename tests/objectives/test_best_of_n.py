import math

import pytest
import torch

from lit_pref.functional.supervised import push_down, unlikelihood
from lit_pref.objectives import BestOfN
from lit_pref.objectives.best_of_n import NEGATIVES
from lit_pref.testing.batches import make_batch, response_sums, whole_loss
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import FlatTokens, Group, Prompt, Refusal, Response, Round


def scored(*rewards, group=0, **fields):
    """A group of two-token responses with these rewards."""
    responses = [Response(ids=[1 + i, 2], reward=r) for i, r in enumerate(rewards)]
    return Group(prompt=Prompt(id=group, text="", ids=[3]), responses=responses, **fields)


BETA = 0.3


class BestOfNTester(ObjectiveTester):
    objective = BestOfN

    def negative(self, best, ordered):
        """The negative term of one prompt; ``ordered`` are all but the best, worst first."""
        return 0.0

    def test_loss_against_the_formula(self):
        module, round = self.prepared()
        batch = make_batch(round)
        every = FlatTokens.from_groups(round.groups)
        with torch.no_grad():
            flat = iter(response_sums(module.policy(every).logps, every))
        total = 0.0
        for group in round.groups:
            logps = sorted((r.reward, next(flat)) for r in group.responses)
            *others, best = [x for _, x in logps]
            total -= best - BETA * self.negative(best, others)
        assert whole_loss(module, batch) == pytest.approx(total / 8, rel=1e-6)


class TestBestOfN(BestOfNTester):
    pass


class TestWorst(BestOfNTester):
    options = {"negative": "worst", "negative_coef": BETA}

    def negative(self, best, ordered):
        return ordered[0]


class TestAverage(BestOfNTester):
    options = {"negative": "average", "negative_coef": BETA}

    def negative(self, best, ordered):
        return sum(x for x in ordered if x - best > math.log(0.01)) / 3


class TestSum(BestOfNTester):
    options = {"negative": "sum", "negative_coef": BETA, "gate": 0.5}

    def negative(self, best, ordered):
        return sum(x for x in ordered if math.exp(x - best) > 0.5)


class TestUnlikelihood(BestOfNTester):
    options = {"negative": "unlikelihood", "negative_coef": BETA}

    def negative(self, best, ordered):
        return sum(-math.log(1 - math.exp(x)) for x in ordered)


def test_the_gate_by_hand():
    # Relative to the best at log 0.5: 0.25 is half as likely, 0.004 is 0.008 times as likely.
    worse = torch.tensor([0.25, 0.004]).log().requires_grad_()
    best = torch.tensor([0.5, 0.5]).log()
    terms = push_down(worse, best, gate=0.01)
    (grad,) = torch.autograd.grad(terms.sum(), worse)
    assert terms.tolist() == pytest.approx([math.log(0.25), 0.0])
    assert grad.tolist() == [1.0, 0.0]
    assert push_down(worse, best, gate=0.0)[1].item() == pytest.approx(math.log(0.004))


def test_unlikelihood_by_hand():
    # -log(1 - 1/4) = 0.2876821; slope p / (1 - p) = 1/3.
    logp = torch.tensor([0.25], dtype=torch.float64).log().requires_grad_()
    loss = unlikelihood(logp)
    (grad,) = torch.autograd.grad(loss.sum(), logp)
    assert loss.item() == pytest.approx(0.2876821, abs=1e-6)
    assert grad.item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("logp", [0.0, -1e-9, -1e-3, -0.6, -0.8, -50.0, -1e4])
def test_unlikelihood_is_finite_everywhere(logp):
    x = torch.tensor([logp], requires_grad=True)
    loss = unlikelihood(x)
    (grad,) = torch.autograd.grad(loss.sum(), x)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(grad).all()


def test_the_published_gates():
    gates = {n: BestOfN(TinyPolicy(), negative=n).gate for n in NEGATIVES}
    assert gates == {"none": 0, "worst": 0, "average": 0.01, "sum": 0.01, "unlikelihood": 0}


def test_of_equal_rewards_the_first_is_best():
    round = Round(index=0, groups=[scored(0.5, 0.5, 0.5)])
    assert BestOfN(TinyPolicy()).weights(round, seed=0) == [[1.0, None, None]]
    worst = BestOfN(TinyPolicy(), negative="worst")
    assert worst.weights(round, seed=0) == [[1.0, None, None]]
    assert not BestOfN(TinyPolicy()).negative_gradient
    assert worst.negative_gradient


@pytest.mark.parametrize("options", [{"negative": "all"}, {"negative_coef": -1}, {"gate": 2}])
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        BestOfN(TinyPolicy(), **options)
