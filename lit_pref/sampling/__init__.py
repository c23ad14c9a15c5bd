"""Samplers: responses from prompts."""

from lit_pref.sampling.native import NativeSampler

__all__ = ["NativeSampler"]
