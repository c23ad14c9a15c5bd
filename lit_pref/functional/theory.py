r"""The categorical world of arXiv 2404.14367, section 6, in exact form.

``V`` categories; policies are softmax of logits. Everything works on the last dimension, so that
many cases are computed at once. Probabilities are strictly positive, float64 for exact tests.

Two updates of the same policy p towards the same target q, one gradient step of size ``eta`` on
the logits:

* mode-covering: forward :math:`KL(q\|p)`, what (weighted) maximum likelihood on samples of q does;
* mode-seeking: reverse :math:`KL(p\|q)`, what policy gradients do (``rl_objective``).

``functional.theory_pairs`` has the effect of a pairwise update with and without its negative half.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "categorical_kl",
    "forward_kl_grad",
    "forward_kl_step",
    "forward_mass_ratio",
    "kl_descent",
    "log_partition",
    "logarithmic_mean",
    "optimal_policy",
    "reverse_kl_grad",
    "reverse_kl_step",
    "reverse_leads",
    "reverse_mass_ratio",
    "rl_objective",
    "weighted_likelihood_grad",
]


def categorical_kl(first: Tensor, second: Tensor) -> Tensor:
    r""":math:`KL(a\|b) = \sum_k a_k \log(a_k / b_k)` in nats.

    Args:
        first: [..., V] probabilities a.
        second: [..., V] probabilities b.

    Returns:
        [...] nats.
    """
    return (torch.special.xlogy(first, first) - torch.special.xlogy(first, second)).sum(-1)


# --------------------------------------------------------------------------- Lemma 6.1


def rl_objective(policy: Tensor, *, reward: Tensor, reference: Tensor, beta: float) -> Tensor:
    r"""The regularised objective of reinforcement learning (arXiv 2404.14367, section 2).

    .. math:: J(\pi) = E_\pi[r] - \beta KL(\pi\|\pi_{ref})

    Lemma 6.1 is the identity :math:`J(\pi) = -\beta KL(\pi\|\pi^*) + \beta \log Z`: to maximise J
    is to minimise a reverse KL, hence mode-seeking.

    Args:
        policy: [..., V] probabilities.
        reward: [..., V] reward of each category.
        reference: [..., V] probabilities of the reference.
        beta: strength of the pull to the reference, above 0.

    Returns:
        [...] reward units.
    """
    return (policy * reward).sum(-1) - beta * categorical_kl(policy, reference)


def log_partition(*, reward: Tensor, reference: Tensor, beta: float) -> Tensor:
    r""":math:`\log Z = \log \sum_k \pi_{ref,k} e^{r_k/\beta}` (arXiv 2404.14367, section 2)."""
    return torch.logsumexp(reference.log() + reward / beta, -1)


def optimal_policy(*, reward: Tensor, reference: Tensor, beta: float) -> Tensor:
    r"""The maximum of ``rl_objective``: :math:`\pi^* = \pi_{ref} e^{r/\beta} / Z`.

    (arXiv 2404.14367, section 2.)

    Args:
        reward: [..., V] reward of each category.
        reference: [..., V] probabilities of the reference.
        beta: strength of the pull to the reference, above 0.

    Returns:
        [..., V] probabilities.
    """
    return (reference.log() + reward / beta).softmax(-1)


def weighted_likelihood_grad(policy: Tensor, *, sampler: Tensor, weight: Tensor) -> Tensor:
    r"""Expected gradient of weighted maximum likelihood at the logits.

    .. math:: E_{y \sim s}[w(y) \nabla \log \pi(y)] = s \odot w - (s \cdot w)\,\pi

    With samples of the policy itself (s = :math:`\pi`) it is the policy gradient of
    :math:`E_\pi[w]`, so on-policy reward-weighted regression is mode-seeking too (Lemma 6.1 of
    arXiv 2404.14367); with a fixed s it is forward KL to the distribution s w / (s . w).

    Args:
        policy: [..., V] probabilities.
        sampler: [..., V] probabilities that the samples are drawn from.
        weight: [..., V] weight of each category.

    Returns:
        [..., V] ascent direction.
    """
    mass = sampler * weight
    return mass - mass.sum(-1, keepdim=True) * policy


# --------------------------------------------------------------------------- Theorem 6.5


def forward_kl_grad(policy: Tensor, target: Tensor) -> Tensor:
    r"""Gradient of forward :math:`KL(q\|p)` at the logits: :math:`p - q`."""
    return policy - target


def reverse_kl_grad(policy: Tensor, target: Tensor) -> Tensor:
    r"""Gradient of reverse :math:`KL(p\|q)` at the logits: :math:`p (\log(p/q) - KL(p\|q))`."""
    return policy * (policy.log() - target.log() - categorical_kl(policy, target)[..., None])


def forward_kl_step(policy: Tensor, target: Tensor, *, eta: float) -> Tensor:
    """Probabilities after one mode-covering step of size ``eta`` on the logits."""
    return (policy.log() - eta * forward_kl_grad(policy, target)).softmax(-1)


def reverse_kl_step(policy: Tensor, target: Tensor, *, eta: float) -> Tensor:
    """Probabilities after one mode-seeking step of size ``eta`` on the logits."""
    return (policy.log() - eta * reverse_kl_grad(policy, target)).softmax(-1)


def kl_descent(policy: Tensor, target: Tensor, *, eta: float, steps: int) -> tuple[Tensor, Tensor]:
    """Both updates, many steps.

    Args:
        policy: [..., V] probabilities to start from.
        target: [..., V] target probabilities.
        eta: step size on the logits.
        steps: number of steps.

    Returns:
        Forward and reverse trajectories, each [steps + 1, ..., V], the start included.
    """
    forward, reverse = [policy], [policy]
    for _ in range(steps):
        forward.append(forward_kl_step(forward[-1], target, eta=eta))
        reverse.append(reverse_kl_step(reverse[-1], target, eta=eta))
    return torch.stack(forward), torch.stack(reverse)


def forward_mass_ratio(policy: Tensor, target: Tensor, *, i: int, j: int, eta: float) -> Tensor:
    r"""How a mode-covering step changes the log mass ratio of two categories, exactly.

    .. math:: \Delta^f = \eta [(q_i - p_i) - (q_j - p_j)]

    Here :math:`\Delta = \log(p'_i / p_i) - \log(p'_j / p_j)` (arXiv 2404.14367, theorem 6.5). It is
    no approximation: the normaliser of the softmax cancels.

    Args:
        policy: [..., V] probabilities p.
        target: [..., V] probabilities q.
        i: first category.
        j: second category.
        eta: step size on the logits.

    Returns:
        [...] nats.
    """
    gap = target - policy
    return eta * (gap[..., i] - gap[..., j])


def reverse_mass_ratio(policy: Tensor, target: Tensor, *, i: int, j: int, eta: float) -> Tensor:
    r"""The same for a mode-seeking step.

    .. math:: \Delta^r = -\eta [p_i (\log(p_i/q_i) - K) - p_j (\log(p_j/q_j) - K)]

    with :math:`K = KL(p\|q)` (arXiv 2404.14367, theorem 6.5).
    """
    grad = reverse_kl_grad(policy, target)
    return -eta * (grad[..., i] - grad[..., j])


def logarithmic_mean(a: Tensor, b: Tensor) -> Tensor:
    r""":math:`(a - b) / (\log a - \log b)`, and a where both are equal."""
    same = a == b
    log_gap = torch.where(same, torch.ones_like(a), a.log() - b.log())
    return torch.where(same, a, (a - b) / log_gap)


def reverse_leads(p: Tensor, q_first: Tensor, q_second: Tensor) -> Tensor:
    r"""Theorem 6.5, case 1, in exact form: where the mode-seeking step separates faster.

    Two categories have the same mass p and targets :math:`q_1 > q_2`. Then
    :math:`\Delta^r > \Delta^f` if and only if p is above the logarithmic mean of the targets. So
    "reverse KL is faster" is false for categories of small mass (arXiv 2404.14367, theorem 6.5,
    which asks p to be away from 0 by a constant).

    Args:
        p: [...] mass of both categories.
        q_first: [...] larger target.
        q_second: [...] smaller target.

    Returns:
        [...] booleans.
    """
    return p > logarithmic_mean(q_first, q_second)
