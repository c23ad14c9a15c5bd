"""Steps without a finite gradient: left out, counted and refused alike on the host and ahead of it."""

import logging

import pytest
import torch

from lit_pref.metrics.window import Window
from lit_pref.objectives.guard import NonFiniteGradients, StepGuard
from lit_pref.objectives.optim import OptimizerSettings

BAD = [False, True, True, False, True, False]


class Ahead(StepGuard):
    """As on an accelerator: the host does not look at the norm."""

    def _ahead(self, norm):
        return True


def run(kind, bad, *, allowed=10, optimizer="adamw", read_every=1, window=None):
    """Weights after each step, and the guard."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    made = {
        "adamw": lambda: torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5, fused=True),
        "adam": lambda: torch.optim.Adam([weight], lr=0.1, fused=True),
        "slow": lambda: torch.optim.AdamW([weight], lr=0.1, fused=False),
        "sgd": lambda: torch.optim.SGD([weight], lr=0.1, momentum=0.9),
    }[optimizer]()
    guard, window, seen = kind(allowed), window or Window(), []
    for n, wrong in enumerate(bad):
        weight.grad = torch.tensor([float("nan") if wrong else 1.0 + n, 2.0])
        guard.step(made, weight.grad.norm(), window, at=n)
        if (n + 1) % read_every == 0:
            guard.read()
        seen.append(weight.detach().clone())
    guard.read()
    return torch.stack(seen), guard


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "slow", "sgd"])
@pytest.mark.parametrize("kind", [StepGuard, Ahead])
@pytest.mark.parametrize("read_every", [1, 4])
def test_as_if_the_step_had_not_been(optimizer, kind, read_every):
    window = Window()
    seen, guard = run(kind, BAD, optimizer=optimizer, read_every=read_every, window=window)
    assert guard.skipped == 3 and guard.in_a_row == 0
    for n in (1, 2, 4):
        assert torch.equal(seen[n], seen[n - 1])
    # moments and step counts too: the same as a run that never saw those gradients
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    names = {"adamw": torch.optim.AdamW, "slow": torch.optim.AdamW, "adam": torch.optim.Adam}
    if optimizer == "sgd":
        plain = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    else:
        decay = {"weight_decay": 0.5} if optimizer == "adamw" else {}
        plain = names[optimizer]([weight], lr=0.1, fused=optimizer != "slow", **decay)
    norms = []
    for n, wrong in enumerate(BAD):
        if not wrong:
            weight.grad = torch.tensor([1.0 + n, 2.0])
            norms.append(float(weight.grad.norm()))
            plain.step()
    assert torch.equal(weight.detach(), seen[-1])
    assert window.flush()["grad_norm"] == pytest.approx(sum(norms) / 3, rel=1e-12)


@pytest.mark.parametrize("kind", [StepGuard, Ahead])
def test_one_more_than_allowed_is_an_error(kind):
    run(kind, [True, True, False, True, True], allowed=2)
    with pytest.raises(NonFiniteGradients, match=r"3 steps in a row.*max_skipped=2.*optimizer.lr"):
        run(kind, [False, True, True, True], allowed=2)


def test_a_row_that_ended_before_it_was_read_is_an_error_too():
    with pytest.raises(NonFiniteGradients, match="3 steps in a row"):
        run(Ahead, [True, True, True, False, False], allowed=2, read_every=5)


@pytest.mark.parametrize("kind", [StepGuard, Ahead])
def test_checkpoints_hold_the_counts(kind):
    _, guard = run(kind, [False, True, True])
    state = guard.state()
    assert state == [2, 2]
    other = kind(2)
    other.load(state)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.grad = torch.full((1,), float("inf"))

    def one_more():
        other.step(optimizer, weight.grad.norm(), Window(), at=4)
        other.read()

    with pytest.raises(NonFiniteGradients):
        one_more()


def test_a_checkpoint_does_not_hide_a_long_row():
    guard, weight = Ahead(1), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([weight], fused=True)
    for value in (float("nan"), float("nan"), 1.0):
        weight.grad = torch.full((1,), value)
        guard.step(optimizer, weight.grad.norm(), Window(), at=0)
    assert guard.state() == [2, 0]
    with pytest.raises(NonFiniteGradients, match="2 steps"):
        guard.read()


def test_the_log_says_it_once(caplog):
    with caplog.at_level(logging.WARNING):
        run(Ahead, [True, True, True, False], read_every=4)
    assert [r.getMessage() for r in caplog.records] == [
        "3 of the steps since the last row of metrics.csv skipped: the gradient is not finite (3 skipped so far)"
    ]


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_updates_are_fused_where_they_can_be(name):
    def fused(weight):
        return OptimizerSettings(name=name).build([weight]).defaults["fused"]

    class Sharded(torch.nn.Parameter):
        """Stands for what is no plain tensor."""

    assert fused(torch.nn.Parameter(torch.zeros(3))) is True
    assert fused(Sharded(torch.zeros(3))) is None
