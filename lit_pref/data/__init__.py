"""Axes 1 and 2: whose samples, how old, and how often each is used."""

from lit_pref.data.callback import RoundCallback
from lit_pref.data.datamodule import RoundDataModule
from lit_pref.data.mixed import MixedDataModule
from lit_pref.data.offline import OfflineDataModule
from lit_pref.data.onpolicy import OnPolicyDataModule
from lit_pref.data.replay import ReplayDataModule
from lit_pref.data.rounds import RoundListener

__all__ = [
    "MixedDataModule",
    "OfflineDataModule",
    "OnPolicyDataModule",
    "ReplayDataModule",
    "RoundCallback",
    "RoundDataModule",
    "RoundListener",
]
