"""Section 6 of arXiv 2404.14367: identities by autograd, inequalities on random simplices."""

import pytest
import torch

from lit_pref.functional import theory
from lit_pref.functional.theory_pairs import (
    negative_effects,
    pair_grad_product,
    pair_step,
    winner_falls,
)

F64 = torch.float64


def simplices(count, categories, seed, sharpness=1.0):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, categories, generator=draw, dtype=F64) * sharpness
    return logits.softmax(-1)


def autograd(function, policy):
    """Gradient of a function of probabilities at the logits of ``policy``."""
    logits = policy.log().clone().requires_grad_()
    (grad,) = torch.autograd.grad(function(logits.softmax(-1)).sum(), logits)
    return grad


@pytest.mark.parametrize("beta", [0.05, 0.3, 2.0])
def test_lemma_6_1_the_objective_is_a_reverse_kl(beta):
    policy, reference = simplices(200, 7, 1), simplices(200, 7, 2)
    reward = torch.randn(200, 7, generator=torch.Generator().manual_seed(3), dtype=F64)
    given = {"reward": reward, "reference": reference, "beta": beta}
    best = theory.optimal_policy(**given)
    left = theory.rl_objective(policy, **given)
    right = -beta * theory.categorical_kl(policy, best) + beta * theory.log_partition(**given)
    assert (left - right).abs().max() < 1e-10
    assert (
        theory.rl_objective(best, **given) - beta * theory.log_partition(**given)
    ).abs().max() < 1e-10
    ascent = autograd(lambda p: theory.rl_objective(p, **given), policy)
    assert (ascent + beta * theory.reverse_kl_grad(policy, best)).abs().max() < 1e-8


def test_on_policy_weighted_likelihood_is_a_policy_gradient():
    policy = simplices(100, 6, 4)
    weight = simplices(100, 6, 5).mul(3).exp()
    mine = theory.weighted_likelihood_grad(policy, sampler=policy, weight=weight)
    truth = autograd(lambda p: (p * weight).sum(-1), policy)
    assert (mine - truth).abs().max() < 1e-12


def test_weighted_likelihood_on_fixed_samples_is_a_forward_kl():
    policy, sampler, weight = simplices(100, 6, 6), simplices(100, 6, 7), simplices(100, 6, 8)
    mass = (sampler * weight).sum(-1, keepdim=True)
    mine = theory.weighted_likelihood_grad(policy, sampler=sampler, weight=weight)
    target = sampler * weight / mass
    assert (mine + mass * theory.forward_kl_grad(policy, target)).abs().max() < 1e-12


def test_kl_gradients_are_those_of_autograd():
    policy, target = simplices(100, 5, 9), simplices(100, 5, 10)
    forward = autograd(lambda p: theory.categorical_kl(target, p), policy)
    reverse = autograd(lambda p: theory.categorical_kl(p, target), policy)
    assert (forward - theory.forward_kl_grad(policy, target)).abs().max() < 1e-12
    assert (reverse - theory.reverse_kl_grad(policy, target)).abs().max() < 1e-12


# --------------------------------------------------------------------------- Lemma 6.2


def test_lemma_6_2_products_are_those_of_the_gradients():
    policy = simplices(50, 5, 11, sharpness=2.0)
    eye = torch.eye(5, dtype=F64)
    for w, l in [(0, 1), (3, 2), (4, 4)]:  # noqa: E741
        truth = ((eye[w] - policy) * (eye[l] - policy)).sum(-1)
        assert (pair_grad_product(policy, chosen=w, rejected=l) - truth).abs().max() < 1e-14


def test_lemma_6_2_effects_are_finite_differences():
    policy = simplices(200, 5, 12, sharpness=2.0)
    eta = 1e-7
    for w, l in [(0, 1), (4, 2)]:  # noqa: E741
        effects = negative_effects(policy, chosen=w, rejected=l)
        with_it = pair_step(policy, chosen=w, rejected=l, c1=1.0, c2=1.0, eta=eta)
        without = pair_step(policy, chosen=w, rejected=l, c1=1.0, c2=0.0, eta=eta)
        change = (with_it - without) / eta
        assert (change[:, w] - effects.chosen).abs().max() < 1e-6
        assert (change[:, l] - effects.rejected).abs().max() < 1e-6
        assert (change[:, w] - change[:, l] - effects.margin).abs().max() < 1e-6
        assert (effects.margin > 0).all() and (effects.rejected < 0).all()


def test_the_margin_grows_by_exactly_its_formula():
    """log pi_w - log pi_l has no normaliser: no first order, the effect itself."""
    policy = simplices(100, 4, 13)
    with_it = pair_step(policy, chosen=0, rejected=1, c1=1.0, c2=0.7, eta=2.0)
    without = pair_step(policy, chosen=0, rejected=1, c1=1.0, c2=0.0, eta=2.0)
    change = (with_it[:, 0] - with_it[:, 1]) - (without[:, 0] - without[:, 1])
    assert (
        change - 2.0 * 0.7 * negative_effects(policy, chosen=0, rejected=1).margin
    ).abs().max() < 1e-12


def test_the_winner_falls_where_a_third_response_holds_the_mass():
    """A grid over winner and loser; the rest in one bin. The sign law is exact."""
    grid = torch.linspace(0.005, 0.9, 61, dtype=F64)
    w, l = torch.meshgrid(grid, grid, indexing="ij")  # noqa: E741
    inside = w + l < 0.995
    policy = torch.stack([w[inside], l[inside], 1 - w[inside] - l[inside]], -1)
    before = policy.log()
    after = pair_step(policy, chosen=0, rejected=1, c1=0.0, c2=1.0, eta=1e-7)
    change = (after - before)[:, 0]
    falls = winner_falls(policy, chosen=0, rejected=1)
    clear = negative_effects(policy, chosen=0, rejected=1).chosen.abs() > 1e-6
    assert falls[clear].any() and not falls[clear].all()
    assert ((change < 0) == falls)[clear].all()


def test_chosen_and_rejected_must_differ():
    with pytest.raises(ValueError, match="must differ"):
        negative_effects(simplices(1, 3, 0), chosen=1, rejected=1)


# --------------------------------------------------------------------------- Theorem 6.5


def test_mass_ratios_are_those_of_the_steps():
    policy, target, eta = simplices(500, 5, 14), simplices(500, 5, 15), 0.7
    for step, ratio in [
        (theory.forward_kl_step, theory.forward_mass_ratio),
        (theory.reverse_kl_step, theory.reverse_mass_ratio),
    ]:
        log = (step(policy, target, eta=eta) / policy).log()
        truth = log[:, 1] - log[:, 3]
        assert (ratio(policy, target, i=1, j=3, eta=eta) - truth).abs().max() < 1e-12


def cases(seed, *, equal_policy=False, equal_target=False, count=100_000):
    policy, target = simplices(count, 5, seed, 1.5), simplices(count, 5, seed + 1, 1.5)
    if equal_policy:
        policy = policy.index_copy(1, torch.tensor([1]), policy[:, :1])
    if equal_target:
        target = target.index_copy(1, torch.tensor([1]), target[:, :1])
    policy, target = policy / policy.sum(-1, keepdim=True), target / target.sum(-1, keepdim=True)
    gap = theory.reverse_mass_ratio(policy, target, i=0, j=1, eta=1.0)
    gap = gap - theory.forward_mass_ratio(policy, target, i=0, j=1, eta=1.0)
    return policy, target, gap


def test_theorem_6_5_case_1_holds_exactly_above_the_logarithmic_mean():
    policy, target, gap = cases(20, equal_policy=True)
    larger = target[:, 0] > target[:, 1]
    policy, target, gap = policy[larger], target[larger], gap[larger]
    leads = theory.reverse_leads(policy[:, 0], target[:, 0], target[:, 1])
    clear = gap.abs() > 1e-14
    assert ((gap > 0) == leads)[clear].all()
    assert 0.05 < leads.double().mean() < 0.95  # both regions are there


def test_theorem_6_5_case_2_feeds_the_one_that_has_more():
    policy, target, gap = cases(22, equal_target=True, count=200_000)
    bound = policy[:, 0] * torch.exp(-theory.categorical_kl(policy, target))
    inside = (policy[:, 0] > policy[:, 1]) & (target[:, 0] >= bound)
    assert inside.sum() > 10_000
    assert (gap[inside] > 0).all()


def test_theorem_6_5_case_3_removes_faster():
    policy, target, gap = cases(24, equal_target=True, count=200_000)
    divergence = theory.categorical_kl(policy, target)
    more = policy[:, 0] > policy[:, 1]
    inside = more & (target[:, 0] <= policy[:, 1] * torch.exp(-divergence))
    assert inside.sum() > 2_000
    assert (gap[inside] < 0).all()
    naive = more & (target[:, 0] < policy[:, 1] / torch.e)
    assert not (gap[naive] < 0).all()  # the K in the condition is needed


def test_the_logarithmic_mean_lies_between():
    a, b = torch.tensor([0.45, 0.2], dtype=F64), torch.tensor([0.10, 0.2], dtype=F64)
    mean = theory.logarithmic_mean(a, b)
    assert mean[0].item() == pytest.approx(0.35 / 1.504077, abs=1e-6)
    assert mean[1] == 0.2


# --------------------------------------------------------------------------- figure 20

START = torch.tensor([0.3, 0.3, 0.1, 0.3], dtype=F64)
TARGET = torch.tensor([0.2, 0.1, 0.6, 0.1], dtype=F64)
TABLE = {  # steps of size 0.5: forward, reverse (computed apart from this code)
    1: ([0.298, 0.284, 0.134, 0.284], [0.316, 0.285, 0.115, 0.285]),
    3: ([0.283, 0.249, 0.219, 0.249], [0.332, 0.257, 0.155, 0.257]),
    5: ([0.260, 0.215, 0.311, 0.215], [0.329, 0.231, 0.209, 0.231]),
    10: ([0.213, 0.155, 0.477, 0.155], [0.268, 0.171, 0.390, 0.171]),
    20: ([0.190, 0.116, 0.578, 0.116], [0.202, 0.117, 0.565, 0.117]),
}


def test_the_table_of_the_illustration():
    forward, reverse = theory.kl_descent(START, TARGET, eta=0.5, steps=20)
    for step, (covering, seeking) in TABLE.items():
        assert (forward[step] - torch.tensor(covering, dtype=F64)).abs().max() <= 5.1e-4
        assert (reverse[step] - torch.tensor(seeking, dtype=F64)).abs().max() <= 5.1e-4


def test_the_published_bars_fit_with_their_labels_exchanged():
    labelled_forward = torch.tensor([0.329, 0.225, 0.219, 0.225], dtype=F64)
    labelled_reverse = torch.tensor([0.250, 0.199, 0.349, 0.199], dtype=F64)
    forward, reverse = theory.kl_descent(START, TARGET, eta=0.93, steps=3)
    assert (reverse[3] - labelled_forward).abs().max() < 0.006
    assert (forward[3] - labelled_reverse).abs().max() < 0.006
    as_printed = min(
        max((f - labelled_forward).abs().max().item(), (r - labelled_reverse).abs().max().item())
        for eta in torch.logspace(-2, 1, 60).tolist()
        for f, r in zip(*theory.kl_descent(START, TARGET, eta=eta, steps=40), strict=True)
    )
    assert as_printed > 0.07


def test_inside_the_region_reverse_leads():
    start = torch.full((3,), 1 / 3, dtype=F64)
    target = torch.tensor([0.45, 0.45, 0.10], dtype=F64)
    assert theory.reverse_mass_ratio(start, target, i=0, j=2, eta=1.0).item() == pytest.approx(
        0.501, abs=1e-3
    )
    assert theory.forward_mass_ratio(start, target, i=0, j=2, eta=1.0).item() == pytest.approx(
        0.350, abs=1e-12
    )
    assert theory.reverse_leads(start[0], target[0], target[2])
