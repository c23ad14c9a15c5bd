"""Axes 1 and 2: whose samples, how old, and how often each is used."""

from lit_pref.data.callback import RoundCallback
from lit_pref.data.datamodule import RoundDataModule, RoundListener
from lit_pref.data.offline import OfflineDataModule
from lit_pref.data.onpolicy import OnPolicyDataModule

__all__ = [
    "OfflineDataModule",
    "OnPolicyDataModule",
    "RoundCallback",
    "RoundDataModule",
    "RoundListener",
]
