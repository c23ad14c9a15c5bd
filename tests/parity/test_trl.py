"""Losses and gradients against those of TRL 1.16, run by TRL's own code.

Our objectives run whole, on a batch that went the real path; see ``trl_calls``. Both sides are
float32. Gradients are those in token log-probs unless a test says otherwise.
``docs/objectives/parity.md`` names the test behind each of its rows.
"""

from importlib.metadata import version

import pytest
import torch

pytest.importorskip("trl", reason="needs trl: pip install -e '.[parity]'")
if version("trl") != "1.16.0":
    pytest.skip("the comparison is with trl==1.16.0", allow_module_level=True)

from trl import GRPOTrainer, RLOOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.utils import nanstd
from trl_calls import (
    Ours,
    close,
    groups_of,
    trl_dpo,
    trl_kto,
    trl_policy_gradient,
    trl_reward,
    trl_unreferenced,
)

from lit_pref import objectives as ours
from lit_pref.functional.preference_reference import bco_loss

# --------------------------------------------------------------------------- DPO and its branches


DPO_EQUAL = {
    "dpo": (ours.DPO, {}, "sigmoid", {}),
    "dpo reduction=mean": (ours.DPO, {"reduction": "mean"}, "sigmoid_norm", {}),
    "dpo ld_alpha": (ours.DPO, {"ld_alpha": 0.4}, "sigmoid", {"ld_alpha": 0.4}),
    "dpo weighting=wpo": (ours.DPO, {"weighting": "wpo"}, "sigmoid", {"use_weighting": True}),
    "robust_dpo": (ours.RobustDPO, {"label_smoothing": 0.1}, "robust", {"label_smoothing": 0.1}),
    "ipo reduction=mean": (ours.IPO, {"tau": 0.3, "reduction": "mean"}, "ipo", {}),
    "slic": (ours.SLiC, {"delta": 1.0, "scores": "log_ratio"}, "hinge", {}),
    "exo": (ours.EXO, {"label_smoothing": 0.1}, "exo_pair", {"label_smoothing": 0.1}),
    "nca": (ours.NCA, {}, "nca_pair", {}),
    "sppo": (ours.SPPO, {"eta": 1 / 0.3}, "sppo_hard", {}),
    "aot": (ours.AOT, {"label_smoothing": 0.1}, "aot", {"label_smoothing": 0.1}),
    "aot compare=responses": (ours.AOT, {"compare": "responses"}, "aot_unpaired", {}),
    "apo_zero": (ours.APOZero, {}, "apo_zero", {}),
    "apo_down": (ours.APODown, {}, "apo_down", {}),
    "discopop": (ours.DiscoPOP, {"temperature": 0.2}, "discopop", {}),
}


@pytest.mark.parametrize("case", DPO_EQUAL)
def test_dpo_trainer(case):
    objective, options, loss_type, attributes = DPO_EQUAL[case]
    strength = {} if objective in (ours.IPO, ours.SPPO) else {"beta": 0.3}
    run = Ours(objective, {**strength, **options})
    assert run.agrees(trl_dpo(run, loss_type, **attributes))


DIVERGENCES = {"forward_kl": "forward_kl", "js": "js_divergence", "alpha": "alpha_divergence"}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_dpo_divergences(name):
    """TRL's coefficient of the alpha divergence is 1 - alpha."""
    run = Ours(ours.DPO, {"beta": 0.3, "divergence": name, "divergence_alpha": 0.3})
    form = {"f_divergence_type": DIVERGENCES[name], "f_alpha_divergence_coef": 0.7}
    assert run.agrees(trl_dpo(run, "sigmoid", **form))


def test_dpo_with_likelihood_term():
    """TRL: one mean over the tokens of all chosen responses; ours: of each response, then those."""
    options = {"beta": 0.3, "nll_coef": 0.7}
    run = Ours(ours.DPO, options, groups=groups_of(4))
    assert run.agrees(trl_dpo(run, ["sigmoid", "sft"]))
    run = Ours(ours.DPO, options)
    assert not run.agrees(trl_dpo(run, ["sigmoid", "sft"]))


def test_pref_ft():
    run = Ours(ours.PrefFT, {})
    run.rows = list(range(len(run.lengths))) * 2
    run.ref = run.logps.detach()
    assert run.agrees(trl_dpo(run, "sft"))


def test_dpo_label_smoothing_is_ignored_by_trl():
    run = Ours(ours.DPO, {"beta": 0.3, "label_smoothing": 0.1})
    smoothed = trl_dpo(run, "sigmoid", label_smoothing=0.1)
    assert torch.equal(smoothed, trl_dpo(run, "sigmoid"))
    assert not run.agrees(smoothed)


def test_ipo_of_sums():
    """TRL's is of log-ratios per token, the same where responses are one token long."""
    run = Ours(ours.IPO, {"tau": 0.3}, groups=groups_of(1))
    assert run.agrees(trl_dpo(run, "ipo"))
    run = Ours(ours.IPO, {"tau": 0.3})
    assert not run.agrees(trl_dpo(run, "ipo"))


def test_bco_without_its_shift():
    """TRL's bco_pair is BCO with a shift of 0, which is no parameter of ours."""
    run = Ours(ours.BCO, {"beta": 0.3})
    theirs = trl_dpo(run, "bco_pair")
    assert not run.agrees(theirs)
    ratio = (run.padded(run.logps, run.rows) - run.padded(run.ref, run.rows)).sum(1)
    run.loss = bco_loss(*ratio.chunk(2), beta=0.3, shift=torch.zeros(())).mean()
    assert run.agrees(theirs)


# --------------------------------------------------------------------------- KTO


def labelled(responses):
    groups = groups_of(responses=responses)
    for k, response in enumerate(r for g in groups for r in g.responses):
        response.label = k % 3 != 0
    return groups


KTO = {"beta": 0.3, "undesirable_weight": 1.3}


def test_kto():
    """With one response per prompt the foreign responses are TRL's too."""
    run = Ours(ours.KTO, KTO, groups=labelled(1))
    assert run.batch.notes.response["kl"][0] > 0
    assert run.agrees(trl_kto(run))


def test_kto_of_groups():
    """TRL's neighbour may have the same prompt, ours never has."""
    run = Ours(ours.KTO, KTO, groups=labelled(4))
    assert not run.agrees(trl_kto(run))


# --------------------------------------------------------------------------- without a reference


MARGIN = {"beta": 2.0, "gamma": 0.5}
SIMPO = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5}
CPO_EQUAL = {
    "simpo": (ours.SimPO, MARGIN, SIMPO),
    "simpo label_smoothing": (
        ours.SimPO,
        {**MARGIN, "label_smoothing": 0.1},
        {**SIMPO, "label_smoothing": 0.1},
    ),
    "alphapo": (ours.AlphaPO, {**MARGIN, "alpha": 0.25}, {**SIMPO, "alpha": 0.25}),
    "slic scores=logp": (
        ours.SLiC,
        {"beta": 0.3, "delta": 1.0, "scores": "logp"},
        {"beta": 0.3, "loss_type": "hinge"},
    ),
    "cpo nll_coef=0": (
        ours.CPO,
        {"beta": 0.3, "nll_coef": 0.0, "label_smoothing": 0.1},
        {"beta": 0.3, "label_smoothing": 0.1},
    ),
}


@pytest.mark.parametrize("case", CPO_EQUAL)
def test_cpo_trainer(case):
    objective, options, attributes = CPO_EQUAL[case]
    run = Ours(objective, options)
    assert run.agrees(trl_unreferenced(CPOTrainer, run, **attributes))


LIKELIHOOD = {
    "simpo": (
        CPOTrainer,
        ours.SimPO,
        {**MARGIN, "nll_coef": 0.7},
        {**SIMPO, "cpo_alpha": 0.7},
    ),
    "cpo": (
        CPOTrainer,
        ours.CPO,
        {"beta": 0.3, "nll_coef": 0.7, "nll_reduction": "mean"},
        {"beta": 0.3, "cpo_alpha": 0.7},
    ),
    "orpo": (ORPOTrainer, ours.ORPO, {"beta": 0.3}, {"beta": 0.3}),
}


@pytest.mark.parametrize("case", LIKELIHOOD)
def test_likelihood_terms(case):
    """TRL: one mean over the tokens of all chosen responses; ours: of each response, then those."""
    cls, objective, options, attributes = LIKELIHOOD[case]
    run = Ours(objective, options, groups=groups_of(4))
    assert run.agrees(trl_unreferenced(cls, run, **attributes))
    run = Ours(objective, options)
    assert not run.agrees(trl_unreferenced(cls, run, **attributes))


def test_orpo_likelihood_of_the_prompt():
    """TRL's covers the prompt's tokens from the second on."""
    run = Ours(ours.ORPO, {"beta": 0.3}, groups=groups_of(4))
    assert not run.agrees(trl_unreferenced(ORPOTrainer, run, prompt=3, beta=0.3))


def test_cpo_as_published_sums_the_likelihood():
    run = Ours(ours.CPO, {"beta": 0.3, "nll_coef": 0.7}, groups=groups_of(4))
    assert not run.agrees(trl_unreferenced(CPOTrainer, run, beta=0.3, cpo_alpha=0.7))


# --------------------------------------------------------------------------- reward model


@pytest.mark.parametrize("centering", [0.0, 0.01])
def test_reward_model(centering):
    groups = groups_of()
    for k, group in enumerate(groups):
        group.margin = 0.1 * k
    run = Ours(ours.RewardModel, {"centering": centering}, groups=groups)
    margin = torch.tensor([g.margin for g in groups])
    theirs = trl_reward(run, margin, centering or None)
    assert run.agrees(theirs, run.stats.final_hidden)


# --------------------------------------------------------------------------- policy gradient


GRPO_EQUAL = {
    "grpo": ({"kl_coef": 0.04}, {"beta": 0.04}),
    "dapo": (
        {"epsilon_high": 0.28, "denominator": "tokens"},
        {"loss_type": "dapo", "epsilon_high": 0.28},
    ),
    "bnpo": ({"denominator": "tokens"}, {"loss_type": "bnpo"}),
    "dr_grpo": (
        {"scale": "none", "denominator": "constant", "max_tokens": 9},
        {"loss_type": "dr_grpo"},
    ),
    "gspo": (
        {"ratio": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
        {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    ),
    "cispo": (
        {"clip": "weight", "epsilon_low": 1.0, "epsilon_high": 0.1, "denominator": "tokens"},
        {"loss_type": "cispo", "epsilon_high": 1.1},
    ),
    "dapo entropy_coef": (
        {"denominator": "tokens", "entropy_coef": 0.01},
        {"loss_type": "dapo", "_entropy_bonus_enabled": True, "entropy_coef": 0.01},
    ),
}


@pytest.mark.parametrize("case", GRPO_EQUAL)
def test_grpo_trainer(case):
    options, attributes = GRPO_EQUAL[case]
    run = Ours(ours.GRPO, options)
    ratio = (run.logps.detach() - run.batch.notes.token["old_logps"]).exp()
    assert ratio.max() > 1.28 and ratio.min() < 0.8, "nothing is clipped"
    theirs = trl_policy_gradient(GRPOTrainer, run, **attributes)
    assert run.agrees(theirs)
    if run.stats.entropy is not None:
        assert run.agrees(theirs, run.stats.entropy)


def test_grpo_entropy_bonus_of_other_denominators():
    """TRL's bonus is a mean over tokens whatever the denominator of the policy's part."""
    run = Ours(ours.GRPO, {"entropy_coef": 0.01})
    theirs = trl_policy_gradient(GRPOTrainer, run, _entropy_bonus_enabled=True, entropy_coef=0.01)
    assert not run.agrees(theirs, run.stats.entropy)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_grpo_advantages(scale):
    """TRL computes them amid generation: its formula restated, with its own ``nanstd``.

    Of the batch it takes the deviation of the rewards, ours that of what is left of them after the
    groups' means.
    """
    run = Ours(ours.GRPO, {"scale": scale})
    rewards = torch.tensor([r.reward for r in run.round.kept()]).view(-1, 4)
    theirs = rewards - rewards.nanmean(dim=1, keepdim=True)
    if scale == "group":
        theirs = theirs / (nanstd(rewards, dim=1)[:, None] + 1e-4)
    if scale == "batch":
        theirs = theirs / (nanstd(rewards) + 1e-4)
    equal = close(run.batch.view.response["advantage"], theirs.flatten())
    assert equal == (scale != "batch")


def test_rloo():
    """On fresh samples the gradients are equal; TRL's loss is that of the ratio, which is 1."""
    run = Ours(ours.REINFORCE, {"baseline": "leave_one_out", "denominator": "responses"})
    assert "old_logps" not in run.batch.notes.token
    theirs = trl_policy_gradient(RLOOTrainer, run)
    assert close(*run.slopes(theirs))
    assert not run.agrees(theirs)
