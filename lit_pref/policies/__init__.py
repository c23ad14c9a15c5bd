"""Policies: what scores and continues token sequences, and references made from them."""

from lit_pref.policies.hf import HFPolicy
from lit_pref.policies.models import ModelSpec, gpt_nano, hf, smollm2, tiny
from lit_pref.policies.reference import FrozenReference

__all__ = ["FrozenReference", "HFPolicy", "ModelSpec", "gpt_nano", "hf", "smollm2", "tiny"]
