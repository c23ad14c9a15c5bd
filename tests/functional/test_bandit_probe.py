"""Exact expectations against enumeration and simulation."""

import itertools

import pytest
import torch

from lit_pref.functional.bandit import action_rewards, reference_probs, reward_distribution
from lit_pref.functional.bandit_probe import bandit_probe, best_of_probs

F64 = torch.float64


def test_best_of_by_enumeration():
    probs, rewards = (
        torch.tensor([0.5, 0.2, 0.3], dtype=F64),
        torch.tensor([0.1, 0.9, 0.1], dtype=F64),
    )
    truth = torch.zeros(3, dtype=F64)
    for draw in itertools.product(range(3), repeat=3):
        best = max(draw, key=lambda a: rewards[a].item())  # the first of equals
        truth[best] += probs[list(draw)].prod()
    assert torch.allclose(best_of_probs(probs, rewards, n=3), truth, atol=1e-14)


def test_best_of_ten_has_the_closed_form_mean():
    rewards, probs = action_rewards("r1"), reference_probs()
    best = best_of_probs(probs, rewards, n=10)
    assert best.sum().item() == pytest.approx(1, abs=1e-12)
    assert (best @ rewards).item() == pytest.approx(
        reward_distribution(rewards, probs).best_of(10), abs=1e-12
    )


def test_the_reference_itself_has_no_margin():
    probs = reference_probs()
    out = bandit_probe(probs.log().expand(3, -1), rewards=action_rewards("r1"), reference=probs)
    assert out["reward"] == pytest.approx(0.03905, abs=1e-5)
    for name in ("kl", "kl_reverse", "h_chosen", "h_rejected", "h_margin_clear", "h_margin_all"):
        assert out[name] == pytest.approx(0, abs=1e-12)


def test_expectations_are_what_simulation_gives():
    draw = torch.Generator().manual_seed(0)
    logps = torch.randn(4, 100, generator=draw, dtype=F64).log_softmax(-1)
    rewards, probs = action_rewards("r2"), reference_probs()
    out = bandit_probe(logps, rewards=rewards, reference=probs)
    actions = torch.multinomial(probs, 4 * 20_000 * 10, replacement=True, generator=draw).view(
        4, -1, 10
    )
    h = logps.gather(1, actions.view(4, -1)).view_as(actions) - probs.log()[actions]
    scores = rewards[actions]
    best = scores.argmax(-1, keepdim=True)
    chosen = h.gather(-1, best).mean().item()
    assert out["h_chosen"] == pytest.approx(chosen, abs=0.02)
    assert out["h_rejected"] == pytest.approx(
        (h.sum(-1, keepdim=True) - h.gather(-1, best)).mean().item() / 9, abs=0.02
    )
    gap = scores[..., 0] - scores[..., 1]
    for name, least in (("clear", 0.2), ("all", 0.0)):
        kept, sign = gap.abs() > least, gap.sign()
        margin = ((h[..., 0] - h[..., 1]) * sign)[kept].mean().item()
        assert out[f"h_margin_{name}"] == pytest.approx(margin, abs=0.02)
