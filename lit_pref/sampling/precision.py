"""Whether rounded weights sample faster on this processor; found out by trying."""

from __future__ import annotations

import logging
import statistics
import time
from typing import Any, Literal

import torch

from lit_pref.engine.decode import decode
from lit_pref.engine.packed_weights import LEAST_TOKENS, packed_weights
from lit_pref.functional.rng import uniforms
from lit_pref.types import Policy, Refusal

__all__ = ["Precision", "check_precision", "faster_precision", "rounded"]

Precision = Literal["policy", "bfloat16", "auto"]

WORTH = 0.9
"""Rounded weights are taken if they need at most this share of the time."""

log = logging.getLogger(__name__)


def check_precision(precision: str, policy: Any, *, sharded: bool = False) -> None:
    """Whether a policy can be sampled from in a precision; its weights need not be loaded.

    Args:
        precision: as in the sampler.
        policy: the policy.
        sharded: no process has its whole weights.

    Raises:
        Refusal: it cannot.
    """
    if precision == "policy":
        return
    keep = "leave sampler.precision=policy"
    if not hasattr(policy, "in_precision"):
        raise Refusal(
            f"sampler.precision={precision} rounds the weights of a Hugging Face language model, "
            f"got {type(policy).__name__}; {keep}"
        )
    if getattr(policy.spec, "quantized", False):
        raise Refusal(
            f"sampler.precision={precision} rounds weights, and those of {policy.spec.name} are "
            f"quantized (model.quantize); {keep}"
        )
    if sharded:
        raise Refusal(
            f"sampler.precision={precision} needs whole weights on each process, and the policy "
            f"is sharded (strategy=fsdp2); {keep}, or use strategy=ddp"
        )


def rounded(policy: Any) -> Any:
    """The policy in half precision, its weights as they are now."""
    return policy.in_precision(torch.bfloat16)


def faster_precision(policy: Policy) -> str:
    """``bfloat16`` where it samples clearly faster here, else ``policy``; equal on all processes.

    Args:
        policy: loaded, on its device, in eval mode.
    """
    candidates = {"policy": policy, "bfloat16": rounded(policy)}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(4):
        for name, candidate in candidates.items():
            with packed_weights(candidate, tokens=LEAST_TOKENS):
                spent = _seconds(candidate)
            if turn:  # the first warms up
                seconds[name].append(spent)
    plain, half = (statistics.median(seconds[name]) for name in candidates)
    found = "bfloat16" if half <= WORTH * plain else "policy"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        box = [found]
        torch.distributed.broadcast_object_list(box, src=0)
        found = box[0]
    log.info(
        "sampler.precision=auto: %s (bfloat16 takes %.2f times as long as the policy's precision)",
        found,
        half / plain,
    )
    return found


def _seconds(policy: Any) -> float:
    """Time of a few decoding steps of 32 rows."""
    start = time.perf_counter()
    size = policy.spec.vocab_size
    room = min(policy.spec.context_length, 16)
    decode(
        policy,
        [[i % size for i in range(room // 2)]] * 4,
        copies=8,
        uniforms=uniforms([(i,) for i in range(32)], room // 2),
        max_new_tokens=room // 2,
    )
    return time.perf_counter() - start
