"""Preference fine-tuning of language models for PyTorch Lightning and Hydra.

Names are imported on first use, so that ``import lit_pref`` imports no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "DPO": "objectives",
    "GRPO": "objectives",
    "PPO": "objectives",
    "REINFORCE": "objectives",
    "PairwiseModule": "objectives",
    "PolicyGradientModule": "objectives",
    "AOT": "objectives",
    "APODown": "objectives",
    "APOZero": "objectives",
    "AWR": "objectives",
    "BCO": "objectives",
    "BestOfN": "objectives",
    "DPOP": "objectives",
    "DiscoPOP": "objectives",
    "EXO": "objectives",
    "FilteredSFT": "objectives",
    "IPO": "objectives",
    "NCA": "objectives",
    "PrefFT": "objectives",
    "RWR": "objectives",
    "RobustDPO": "objectives",
    "SFT": "objectives",
    "SLiC": "objectives",
    "SPPO": "objectives",
    "SupervisedModule": "objectives",
    "TRDPO": "objectives",
    "AlphaPO": "objectives",
    "CPO": "objectives",
    "ORPO": "objectives",
    "SimPO": "objectives",
    "Unlikelihood": "objectives",
    "KTO": "objectives",
    "BCOUnpaired": "objectives",
    "UnpairedModule": "objectives",
    "RewardModel": "objectives",
    "ScoreModule": "objectives",
    "OptimizerSettings": "objectives",
    "SchedulerSettings": "objectives",
    "OnPolicyDataModule": "data",
    "OfflineDataModule": "data",
    "MixedDataModule": "data",
    "ReplayDataModule": "data",
    "RoundDataModule": "data",
    "HFPolicy": "policies",
    "LoRA": "policies",
    "ScalarHead": "policies",
    "LearnedReward": "rewards",
    "FrozenReference": "policies",
    "MovingReference": "policies",
    "NativeSampler": "sampling",
    "Evaluation": "callbacks",
    "AgainstReference": "callbacks",
    "Alarms": "callbacks",
    "Curve": "callbacks",
    "GradientParts": "callbacks",
    "PairProbe": "callbacks",
    "SampleStatistics": "callbacks",
    "ClosedFormReference": "policies",
    "ContextMLPPolicy": "policies",
    "ContextualBandit": "tasks",
    "TextTask": "tasks",
    "TokenBandit": "tasks",
    "Refusal": "errors",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"lit_pref.{_HOME[name]}"), name)
    raise AttributeError(f"module 'lit_pref' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
