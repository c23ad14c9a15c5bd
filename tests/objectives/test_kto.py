import math
from types import SimpleNamespace

import pytest
import torch

from lit_pref.functional.unpaired import group_labels, kto_loss
from lit_pref.objectives import KTO
from lit_pref.objectives.kto import mismatched
from lit_pref.policies.reference import FrozenReference
from lit_pref.testing.batches import (
    assert_close,
    coupled,
    make_batch,
    response_sums,
    whole_loss,
)
from lit_pref.testing.objective_tester import ObjectiveTester
from lit_pref.testing.tiny import TinyPolicy
from lit_pref.types import FlatTokens, Refusal


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def logp(policy, prompt, response):
    """Log-prob of one response, in a forward of its own."""
    tokens = FlatTokens(
        prompt_ids=torch.tensor(prompt),
        prompt_lengths=[len(prompt)],
        response_ids=torch.tensor(response),
        lengths=[len(response)],
        prompt_of=[0],
    )
    with torch.no_grad():
        return float(policy.token_logps(tokens).logps.sum())


class TestKTO(ObjectiveTester):
    objective = KTO
    options = {"beta": 0.5, "desirable_weight": 1.2, "undesirable_weight": 0.7}
    order_free = False  # whose neighbour a group is matters to the KL estimate

    def test_loss_against_the_formula(self):
        """The policy on each response after the next group's prompt gives z0."""
        module, round = self.prepared()
        reference = module.reference.copy
        with torch.no_grad():  # far from the reference, so that the estimate is above 0
            reference.bias.add_(torch.linspace(-3, 0, 11, dtype=torch.float64))
        groups = round.groups
        total = 0.0
        for g, group in enumerate(groups):
            prompt = groups[(g + 1) % len(groups)].prompt.ids
            for r in group.responses:
                total += logp(module.policy, prompt, r.ids) - logp(reference, prompt, r.ids)
        z0 = max(0.0, total / 32)
        batch = make_batch(round)
        with torch.no_grad():
            now = response_sums(module.policy(batch.tokens).logps, batch.tokens)
        ref = response_sums(batch.notes.token["ref_logps"].double(), batch.tokens)
        losses = []
        for n, group in enumerate(groups):
            mean = sum(r.reward for r in group.responses) / 4
            for k, r in enumerate(group.responses):
                h = now[4 * n + k] - ref[4 * n + k]
                if r.reward > mean:
                    losses.append(1.2 * (1 - sigmoid(0.5 * (h - z0))))
                else:
                    losses.append(0.7 * (1 - sigmoid(0.5 * (z0 - h))))
        assert float(coupled(module, batch).notes.response["kl"][0]) == pytest.approx(z0, rel=1e-6)
        assert whole_loss(module, batch) == pytest.approx(sum(losses) / 32, rel=1e-6)

    def test_group_of_weight_two(self):
        """The round twice, of which each half is followed by the other, is the round at weight 2;
        and z0 is the mean of the estimates of its groups by their weights."""
        heavy = self.groups()
        for group in heavy:
            group.weight = 2.0
        twice = [*self.groups(), *self.groups()]
        assert_close(self.gradient_of(heavy), self.gradient_of(twice), self.tolerance, "weight 2")

        def estimate(weights):
            module = self.module()
            groups = self.groups()
            for group, weight in zip(groups, weights, strict=True):
                group.weight = weight
            round = self.round(module, groups)
            with torch.no_grad():  # far from the reference, so that the estimate is above 0
                module.reference.copy.bias.add_(torch.linspace(-3, 0, 11, dtype=torch.float64))
            return float(coupled(module, make_batch(round)).notes.response["kl"][0])

        even = estimate([1.0] * 8)
        # responses of the first group count three times: 8 even = 7 rest + first
        nearly_only = estimate([1e9] + [1.0] * 7)
        assert even > 0 and abs(nearly_only - even) > 1e-3
        expected = (8 * even + 2 * nearly_only) / 10
        assert estimate([3.0] + [1.0] * 7) == pytest.approx(expected, rel=1e-6)

    def test_order_of_responses_does_not_matter(self):
        expected = self.gradient_of(self.groups())
        swapped = self.groups()
        for group in swapped:
            group.responses.reverse()
        assert_close(self.gradient_of(swapped), expected, self.tolerance, "responses reversed")

    def test_the_estimate_is_not_below_zero_and_has_no_gradient(self):
        module, round = self.prepared()
        kl = coupled(module, make_batch(round)).notes.response["kl"]
        assert float(kl[0]) >= 0
        assert not kl.requires_grad

    def test_batches_of_one_group_are_refused(self):
        module = self.module()
        module.trainer.__class__ = type(
            "Trainer", (type(module.trainer),), {"datamodule": SimpleNamespace(batch_size=1)}
        )
        with pytest.raises(Refusal, match=r"data\.batch_size=1"):
            module.setup("fit")


def test_numbers_by_hand():
    # beta 1, z0 = 1. Desirable h = 1: 1 - sigmoid(0) = 0.5; undesirable h = 2, weight 3:
    # 3 (1 - sigmoid(-1)) = 3 * 0.7310586. Slopes: -0.25, and 3 * 0.7310586 * 0.2689414.
    h = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    losses = kto_loss(
        h,
        torch.tensor([True, False]),
        kl=torch.tensor(1.0, dtype=torch.float64),
        beta=1.0,
        undesirable_weight=3.0,
    )
    assert losses.tolist() == pytest.approx([0.5, 2.1931757], abs=1e-6)
    (grad,) = torch.autograd.grad(losses.sum(), h)
    assert grad.tolist() == pytest.approx([-0.25, 0.5898358], abs=1e-6)


def tokens():
    # groups of 1 and 2 responses: [7] -> [1]; [8, 9, 9] -> [2, 2], [3]
    return FlatTokens(
        prompt_ids=torch.tensor([7, 8, 9, 9]),
        prompt_lengths=[1, 3],
        response_ids=torch.tensor([1, 2, 2, 3]),
        lengths=[1, 2, 1],
        prompt_of=[0, 1, 1],
    )


def test_responses_go_to_the_next_prompt():
    out, members = mismatched(tokens(), [0, 1, 2], context_length=100)
    assert members == [1, 2, 0]
    assert out.prompt_ids.tolist() == [7, 8, 9, 9]
    assert out.prompt_of == [0, 0, 1]
    assert out.lengths == [2, 1, 1]
    assert out.response_ids.tolist() == [2, 2, 3, 1]


def test_foreign_prompts_are_cut_to_the_context():
    out, _ = mismatched(tokens(), [0], context_length=3)
    assert out.prompt_ids.tolist() == [9, 9]
    assert out.response_ids.tolist() == [1]
    assert mismatched(tokens(), [], context_length=3)[0].num_responses == 0


def test_labels():
    none = [None] * 3
    assert group_labels([True, None, False], [0, 1, 2], [1.0, 2.0, 3.0]) == [True, None, False]
    assert group_labels(none, [1, 0, 2], [9.0, 0.0, 0.0]) == [None, True, False]
    assert group_labels(none, none, [1.0, 3.0, 2.0]) == [False, True, False]
    assert group_labels(none, none, [1.0, 1.0, 1.0]) == none
    assert group_labels([None], [0], [None]) == [None]
    assert group_labels(none, none, [1.0, None, 2.0]) == none


@pytest.mark.parametrize(
    "options", [{"beta": 0.0}, {"desirable_weight": -1.0}, {"undesirable_weight": -1.0}]
)
def test_refusals(options):
    with pytest.raises(Refusal, match=f"objective.{next(iter(options))}"):
        KTO(TinyPolicy(), reference=FrozenReference(), **options)
