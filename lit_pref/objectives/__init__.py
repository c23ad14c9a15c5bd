"""Objectives: one file each, a pure loss in ``functional`` and a LightningModule here."""

from lit_pref.objectives.alphapo import AlphaPO
from lit_pref.objectives.aot import AOT
from lit_pref.objectives.apo_down import APODown
from lit_pref.objectives.apo_zero import APOZero
from lit_pref.objectives.awr import AWR
from lit_pref.objectives.base import ObjectiveModule
from lit_pref.objectives.bco import BCO
from lit_pref.objectives.bco_unpaired import BCOUnpaired
from lit_pref.objectives.best_of_n import BestOfN
from lit_pref.objectives.cpo import CPO
from lit_pref.objectives.discopop import DiscoPOP
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.dpop import DPOP
from lit_pref.objectives.exo import EXO
from lit_pref.objectives.families.pairwise import PairwiseModule, Side
from lit_pref.objectives.families.policy_gradient import PolicyGradientModule
from lit_pref.objectives.families.score import ScoreModule
from lit_pref.objectives.families.supervised import SupervisedModule
from lit_pref.objectives.families.unpaired import UnpairedModule
from lit_pref.objectives.filtered_sft import FilteredSFT
from lit_pref.objectives.grpo import GRPO
from lit_pref.objectives.ipo import IPO
from lit_pref.objectives.kto import KTO
from lit_pref.objectives.nca import NCA
from lit_pref.objectives.optim import OptimizerSettings, SchedulerSettings
from lit_pref.objectives.orpo import ORPO
from lit_pref.objectives.ppo import PPO
from lit_pref.objectives.pref_ft import PrefFT
from lit_pref.objectives.reinforce import REINFORCE
from lit_pref.objectives.reward_model import RewardModel
from lit_pref.objectives.robust_dpo import RobustDPO
from lit_pref.objectives.rwr import RWR
from lit_pref.objectives.sft import SFT
from lit_pref.objectives.simpo import SimPO
from lit_pref.objectives.slic import SLiC
from lit_pref.objectives.sppo import SPPO
from lit_pref.objectives.tr_dpo import TRDPO
from lit_pref.objectives.unlikelihood import Unlikelihood

__all__ = [
    "ScoreModule",
    "RewardModel",
    "UnpairedModule",
    "BCOUnpaired",
    "KTO",
    "Unlikelihood",
    "SimPO",
    "ORPO",
    "CPO",
    "AlphaPO",
    "AOT",
    "AWR",
    "BCO",
    "DPO",
    "DPOP",
    "EXO",
    "GRPO",
    "IPO",
    "NCA",
    "PPO",
    "REINFORCE",
    "RWR",
    "SFT",
    "SPPO",
    "TRDPO",
    "APODown",
    "APOZero",
    "BestOfN",
    "DiscoPOP",
    "FilteredSFT",
    "ObjectiveModule",
    "OptimizerSettings",
    "PairwiseModule",
    "PolicyGradientModule",
    "PrefFT",
    "RobustDPO",
    "SLiC",
    "SchedulerSettings",
    "Side",
    "SupervisedModule",
]
