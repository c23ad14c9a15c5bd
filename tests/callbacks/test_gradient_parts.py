"""The two parts of the gradient: their sum is the gradient, their signs are right."""

import pytest
import torch

from lit_pref.objectives import DPO, KTO, PPO, REINFORCE, PrefFT, SimPO
from lit_pref.objectives.gradient_parts import gradient_parts, part_gradients
from lit_pref.policies import FrozenReference
from lit_pref.testing import TinyPolicy, tiny_groups
from lit_pref.testing.batches import (
    StandInTrainer,
    flat_gradient,
    gradients,
    make_batch,
    make_round,
)

KINDS = {
    "dpo": (DPO, {}),
    "dpo_half": (DPO, {"negative_weight": 0.5}),
    "simpo": (SimPO, {}),
    "kto": (KTO, {}),
    "pref_ft": (PrefFT, {}),
    "reinforce": (REINFORCE, {}),
    "ppo": (PPO, {}),
}


def ready(name, *, budget=None):
    kind, options = KINDS[name]
    module = kind(TinyPolicy(), reference=FrozenReference(), **options)
    module._trainer = StandInTrainer()
    module.reference.prepare(module.policy)
    module.policy.perturb(0.2, seed=5)
    module.configure_model()
    batch = make_batch(make_round(module, tiny_groups()), micro_batch_tokens=budget)
    return module, batch


def flat(parts):
    return torch.cat([p.reshape(-1) for p in parts])


@pytest.mark.parametrize("name", [k for k in KINDS if k != "ppo"])
@pytest.mark.parametrize("budget", [None, 20])
def test_the_parts_add_up_to_the_gradient(name, budget):
    module, batch = ready(name, budget=budget)
    up, down = (flat(p) for p in part_gradients(module, batch))
    torch.testing.assert_close(up + down, gradients(module, batch), rtol=1e-8, atol=1e-10)
    assert up.norm() > 0
    assert (down.norm() > 0) == module.negative_gradient


def test_what_a_critic_says_is_in_neither_part():
    module, batch = ready("ppo")
    up, down = part_gradients(module, batch)
    names = [n for n, p in module.named_parameters() if p.requires_grad]
    for name, a, b in zip(names, up, down, strict=True):
        if not name.startswith("policy."):
            assert not a.any() and not b.any(), name


def test_norms_and_cosine_by_hand():
    module, batch = ready("dpo")
    up, down = (flat(p) for p in part_gradients(module, batch))
    found = {n: float(total / count) for n, (total, count) in gradient_parts(module, batch).items()}
    assert found["positive_norm"] == pytest.approx(float(up.norm()))
    assert found["negative_norm"] == pytest.approx(float(down.norm()))
    wanted = float(up @ down / (up.norm() * down.norm()))
    assert found["cosine"] == pytest.approx(wanted)


def test_without_a_negative_part_there_is_no_cosine():
    module, batch = ready("pref_ft")
    found = gradient_parts(module, batch)
    assert float(found["negative_norm"][0]) == 0
    assert [float(x) for x in found["cosine"]] == [0, 0]


def test_weights_gradients_and_window_stay():
    module, batch = ready("dpo")
    gradients(module, batch)
    before = flat_gradient(module).clone(), module.window, dict(module.window.state())
    gradient_parts(module, batch)
    assert torch.equal(flat_gradient(module), before[0])
    assert module.window is before[1]
    assert module.window.state().keys() == before[2].keys()
    for name, value in before[2].items():
        assert torch.equal(module.window.state()[name], value)


def test_the_signs_are_what_a_step_does():
    """A step along the positive part raises the chosen, along the negative lowers the rejected."""
    module, batch = ready("dpo")
    up, down = part_gradients(module, batch)
    pairs = batch.view.pairs

    def logps(side):
        with torch.no_grad():
            sums = module.response_sums(module.policy(batch.tokens).logps, batch.tokens)
        return sums[pairs[:, side]].sum()

    parameters = [p for p in module.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    for part, side, sign in ((up, 0, 1), (down, 1, -1)):
        before = logps(side)
        with torch.no_grad():
            for p, g in zip(parameters, part, strict=True):
                p -= 1e-3 * g
        assert sign * float(logps(side) - before) > 0
        with torch.no_grad():
            for p, s in zip(parameters, start, strict=True):
                p.copy_(s)
