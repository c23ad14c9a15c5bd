"""Policies: what scores and continues token sequences, and references made from them."""

from lit_pref.policies.causal_lm import HFPolicy
from lit_pref.policies.context_mlp import ClosedFormReference, ContextMLPPolicy
from lit_pref.policies.heads import ScalarHead
from lit_pref.policies.lora import LoRA
from lit_pref.policies.models import ModelSpec, gpt_nano, hf, smollm2, tiny
from lit_pref.policies.reference import FrozenReference, MovingReference

__all__ = [
    "ClosedFormReference",
    "ContextMLPPolicy",
    "FrozenReference",
    "HFPolicy",
    "LoRA",
    "ModelSpec",
    "MovingReference",
    "ScalarHead",
    "gpt_nano",
    "hf",
    "smollm2",
    "tiny",
]
