"""The gradient of a step in two parts: what raises log-probs of response tokens, what lowers them.

``T`` response tokens. By the chain rule the gradient through log-probs is the sum over tokens of
``dLoss/dlogp_t * dlogp_t/dweights``; the sign of the first factor says which part a token is in.
What a loss says beside log-probs (an entropy bonus, a critic's error) is in neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_pref.engine.forward import micro_batches
from lit_pref.metrics.window import Window
from lit_pref.types import Batch, TokenStats

if TYPE_CHECKING:
    from lit_pref.objectives.base import ObjectiveModule

__all__ = ["gradient_parts", "part_gradients"]


def gradient_parts(module: ObjectiveModule, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Norms of the two parts over the whole batch and their cosine.

    Args:
        module: the objective; its weights, gradients and logging window stay as they are.
        batch: this process's part; all processes must call.

    Returns:
        ``positive_norm``, ``negative_norm`` and ``cosine``, each as (value, 1); the cosine as
        (0, 0) where a part is zero. Nothing for a loss that does not read log-probs.
    """
    if not module.needs.policy:
        return {}
    held, module.window = module.window, Window()  # losses log; this is no step
    try:
        found = part_gradients(module, batch)
    finally:
        module.window = held
    up, down = ([module.sum_over_processes(g) for g in part] for part in found)
    squares, others, inner = (_inner(x, y) for x, y in ((up, up), (down, down), (up, down)))
    one = torch.ones_like(squares)
    both = ((squares > 0) & (others > 0)).to(one)
    scale = torch.where(both > 0, (squares * others).sqrt(), one)
    return {
        "positive_norm": (squares.sqrt(), one),
        "negative_norm": (others.sqrt(), one),
        "cosine": (both * inner / scale, both),
    }


def _inner(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Inner product of two lists of tensors, in float64 where the device has it."""
    wide = torch.float32 if first[0].device.type == "mps" else torch.float64
    return torch.stack([(a * b).sum(dtype=wide) for a, b in zip(first, second, strict=True)]).sum()


def part_gradients(module: ObjectiveModule, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """This process's sum of each part, one tensor per trainable parameter (never below float32).

    Args:
        module: an objective that trains a policy.
        batch: this process's part.
    """
    weights = [p for p in module.parameters() if p.requires_grad]
    wide = [torch.promote_types(p.dtype, torch.float32) for p in weights]
    up = [torch.zeros_like(p, dtype=d) for p, d in zip(weights, wide, strict=True)]
    down = [torch.zeros_like(total) for total in up]
    policy: Any = module.policy
    policy.train()
    with torch.enable_grad():
        whole = _whole_cotangents(module, batch) if module.couples_batch else None
        for index in micro_batches(
            batch.tokens, batch.micro_batch_tokens, whole_prompts=module.whole_prompts
        ):
            part = batch.select(index)
            stats = policy(part.tokens, stats=tuple(module.token_stats()))
            logps = stats.logps
            cotangent = _cotangent(module, stats, part) if whole is None else _pick(whole, index)
            if cotangent is None:
                continue
            lower = cotangent.clamp(min=0) * module.negative_weight
            for total, signs in ((up, cotangent.clamp(max=0)), (down, lower)):
                _add(total, torch.autograd.grad(
                    logps, weights, signs, retain_graph=total is up, allow_unused=True
                ))  # fmt: skip
    return up, down


def _cotangent(module: ObjectiveModule, stats: TokenStats, part: Batch) -> Tensor | None:
    """[T] dLoss/dlogp of a micro-batch; None where its loss does not read log-probs."""
    loss = module.batch_loss(stats, part)
    if not loss.requires_grad:
        return None
    return torch.autograd.grad(loss, stats.logps, retain_graph=True, allow_unused=True)[0]


def _pick(cotangents: list[Tensor], index: list[int]) -> Tensor:
    return torch.cat([cotangents[i] for i in index])


def _add(sums: list[Tensor], grads: tuple[Tensor | None, ...]) -> None:
    for total, grad in zip(sums, grads, strict=True):
        if grad is not None:
            total += grad


@torch.no_grad()
def _all_logps(module: ObjectiveModule, batch: Batch) -> Tensor:
    """[T] log-probs of the whole batch, over all processes."""
    policy: Any = module.policy
    whole = batch.whole or batch
    places = list(range(whole.tokens.num_responses)) if batch.local is None else batch.local
    dtype = torch.promote_types(torch.float32, next(policy.parameters()).dtype)
    out = torch.zeros(sum(whole.tokens.lengths), device=module.device, dtype=dtype)
    spans = out.split(whole.tokens.lengths)
    for index in micro_batches(
        batch.tokens, batch.micro_batch_tokens, whole_prompts=module.whole_prompts
    ):
        part = batch.select(index).tokens
        logps = policy(part).logps
        for i, piece in zip(index, logps.split(part.lengths), strict=True):
            spans[places[i]].copy_(piece)
    return module.sum_over_processes(out)


def _whole_cotangents(module: ObjectiveModule, batch: Batch) -> list[Tensor]:
    """dLoss/dlogp of each response of this process, of a loss that couples the batch."""
    leaf = _all_logps(module, batch)
    with torch.no_grad():
        whole = module.couple(batch)
    leaf.requires_grad_()
    loss = module.batch_loss(TokenStats(logps=leaf), whole)
    (cotangent,) = torch.autograd.grad(loss, leaf)
    pieces = cotangent.split(whole.tokens.lengths)
    places = range(len(pieces)) if batch.local is None else batch.local
    return [pieces[i] for i in places]
