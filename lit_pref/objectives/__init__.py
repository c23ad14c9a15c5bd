"""Objectives: one file each, a pure loss in ``functional`` and a LightningModule here."""

from lit_pref.objectives.base import ObjectiveModule
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.families.pairwise import PairwiseModule, Side
from lit_pref.objectives.families.policy_gradient import PolicyGradientModule
from lit_pref.objectives.optim import OptimizerSettings, SchedulerSettings
from lit_pref.objectives.reinforce import REINFORCE

__all__ = [
    "DPO",
    "REINFORCE",
    "ObjectiveModule",
    "OptimizerSettings",
    "PairwiseModule",
    "PolicyGradientModule",
    "SchedulerSettings",
    "Side",
]
