"""Backward through one batch: micro-batches, processes, negative weight, coupled losses.

``T`` response tokens. The gradient is the same for any micro-batch size and number of processes:
losses are divided by the counts of the whole batch, and gradients are summed over processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_pref.engine.forward import micro_batches
from lit_pref.policies.sharding import gathered, is_sharded
from lit_pref.transfer import sent
from lit_pref.types import Batch, FlatTokens, TokenStats

if TYPE_CHECKING:
    from lit_pref.objectives.base import ObjectiveModule

__all__ = ["backward", "backward_coupled", "weigh_negative"]


def weigh_negative(token_logps: Tensor, weight: float) -> Tensor:
    """[T] the same log-probs; positive entries of their gradient are multiplied by ``weight``."""
    if weight == 1.0 or not token_logps.requires_grad:
        return token_logps
    out = token_logps * 1.0
    out.register_hook(lambda grad: torch.where(grad > 0, grad * weight, grad))
    return out


def backward(module: ObjectiveModule, batch: Batch) -> None:
    """Forward, loss and backward of each micro-batch."""
    parts = _parts(module, batch)
    world = module.trainer.world_size
    total = torch.zeros((), device=module.device)
    passes = _passes(module, len(parts))
    for n, part in enumerate(parts):
        with _synchronised(module, n == len(parts) - 1):
            stats = module.policy(part.tokens, stats=tuple(module.token_stats()))
            module.compare_with_sampler(stats.logps, part)
            stats.logps = weigh_negative(stats.logps, module.negative_weight)
            loss = module.batch_loss(stats, part)
            module.manual_backward(loss * world)
        total += loss.detach()
    _keep_up(module, batch, passes - len(parts))
    # also without a part of the batch: the loss of a step is the sum over all processes
    module.window.add_total("loss", total, 1 / world)


def backward_coupled(module: ObjectiveModule, batch: Batch) -> None:
    """For losses that couple the batch: all log-probs first, then their cotangents.

    The log-probs of the whole batch over all processes are computed without gradient, the loss is
    taken on them as leaves, and a second forward carries the cotangents into the weights.
    """
    whole, mine = batch.whole or batch, batch.local
    # never below float32, float64 where the policy is
    dtype = torch.promote_types(torch.float32, next(module.policy.parameters()).dtype)
    logps = torch.zeros(sum(whole.tokens.lengths), device=module.device, dtype=dtype)
    spans = _spans(whole.tokens.lengths)
    places = range(whole.tokens.num_responses) if mine is None else mine
    parts = [
        index
        for index in micro_batches(
            batch.tokens, batch.micro_batch_tokens, whole_prompts=module.whole_prompts
        )
    ]
    reference = getattr(module.reference, "copy", None)
    with torch.no_grad(), gathered(module.policy), gathered(reference):
        for index in parts:
            part = batch.select(index)
            out = module.policy(part.tokens).logps
            module.compare_with_sampler(out, part)
            for i, piece in zip(index, out.split(part.tokens.lengths), strict=True):
                logps[spans[places[i]]] = piece.to(logps)
        logps = module.sum_over_processes(logps)
        whole = module.couple(batch)
    leaf = logps.requires_grad_()
    loss = module.batch_loss(TokenStats(logps=weigh_negative(leaf, module.negative_weight)), whole)
    (cotangent,) = torch.autograd.grad(loss, leaf)
    world = module.trainer.world_size
    passes = _passes(module, len(parts))
    for n, index in enumerate(parts):
        with _synchronised(module, n == len(parts) - 1):
            part = batch.select(index)
            grad = torch.cat([cotangent[spans[places[i]]] for i in index])
            module.manual_backward((module.policy(part.tokens).logps * grad).sum() * world)
    _keep_up(module, batch, passes - len(parts))
    module.window.add_total("loss", loss, 1.0)


def _parts(module: ObjectiveModule, batch: Batch) -> list[Batch]:
    tokens, budget = batch.tokens, batch.micro_batch_tokens
    indices = list(micro_batches(tokens, budget, whole_prompts=module.whole_prompts))
    if len(indices) == 1 and len(set(tokens.prompt_of)) == len(tokens.prompt_lengths):
        return [replace(batch, whole=None, local=None)]  # all of it: nothing to pick
    return [batch.select(index) for index in indices]


def _passes(module: ObjectiveModule, mine: int) -> int:
    """How often each process must go through the model, so that no other waits for ever.

    Copies of the model meet once, in the last backward. Shards meet in every forward and backward,
    so the processes agree on the number before the first of them.
    """
    if module.trainer.world_size == 1:
        return mine
    wanted = max(mine, 1)
    if is_sharded(module.policy):
        # on the device: NCCL has no way between processes for tensors of the host
        number = sent(wanted, module.device)
        wanted = int(module.trainer.strategy.reduce(number, reduce_op="max"))
    return wanted


def _keep_up(module: ObjectiveModule, batch: Batch, missing: int) -> None:
    """Stand-in passes for a process that has less to do."""
    for _ in range(missing):
        _backward_nothing(module, batch)


def _backward_nothing(module: ObjectiveModule, batch: Batch) -> None:
    """This process has no response, but the others wait for its part of the reduction."""
    nothing = module.policy(_placeholder(batch.tokens)).logps.sum() * 0.0
    for name, parameter in module.named_parameters():  # heads beside the policy
        if parameter.requires_grad and not name.startswith("policy."):
            nothing = nothing + parameter.sum() * 0.0
    module.manual_backward(nothing)


def _placeholder(tokens: FlatTokens) -> FlatTokens:
    """One predicted token after the first prompt: something to run backward through."""
    first = tokens.prompt_ids[: tokens.prompt_lengths[0]]
    return FlatTokens(
        prompt_ids=first,
        prompt_lengths=[len(first)],
        response_ids=torch.zeros_like(first[:1]),  # token 0: every vocabulary has it
        lengths=[1],
        prompt_of=[0],
    )


def _spans(lengths: list[int]) -> list[slice]:
    out, start = [], 0
    for length in lengths:
        out.append(slice(start, start + length))
        start += length
    return out


@contextlib.contextmanager
def _synchronised(module: ObjectiveModule, last: bool) -> Iterator[None]:
    """Gradients are reduced over processes in the last micro-batch only."""
    block = getattr(module.trainer.strategy, "block_backward_sync", None)
    if last or block is None:
        yield
        return
    with block():
        yield
