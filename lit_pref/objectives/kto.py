"""Kahneman-Tversky optimisation (arXiv 2402.01306)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import Unpack

from lit_pref.engine.forward import micro_batches
from lit_pref.functional.unpaired import kto_loss
from lit_pref.objectives.base import SharedArgs
from lit_pref.objectives.checks import positive, within
from lit_pref.objectives.families.unpaired import UnpairedModule
from lit_pref.objectives.run_data import data_of
from lit_pref.transfer import sent
from lit_pref.types import Batch, FlatTokens, Needs, Policy, Refusal

__all__ = ["KTO", "mismatched"]


class KTO(UnpairedModule):
    r"""Desirable responses above, undesirable ones below the policy's distance to the reference.

    The loss is ``functional.unpaired.kto_loss``. Its reference point is the published estimate

    .. math:: z_0 = \max\left(0, \frac1m \sum_i
              \log\frac{\pi(y_i \mid x_{i+1})}{\pi_{ref}(y_i \mid x_{i+1})}\right)

    over the m responses of the batch, each after the prompt of the next group (the last one after
    the first), without gradient (arXiv 2402.01306, section 4). It is not an unbiased estimate of
    the KL divergence; it is cheap and only shifts the saturation of the loss.

    Responses count in the mean as they do in the loss, by their weights.

    Deviation: the shift is by groups, since the next response of a group has the same prompt;
    with one response per prompt it is the published one. The mean is over the batch of all
    processes; TRL takes that of each micro-batch. A prompt that would not fit into the context
    with the longest of its foreign responses loses its first tokens.

    Args:
        policy: the model to train.
        beta: risk aversion, larger than 0.
        desirable_weight: weight of desirable responses.
        undesirable_weight: weight of undesirable ones. As published, the first times the number
            of desirable responses should be 1 to 4/3 times the second times that of the others.
        **shared: see ``ObjectiveModule``.

    Raises:
        Refusal: an argument out of range, no reference, or batches of a single group.
    """

    needs = Needs(reference=True)
    negative_gradient = True
    couples_batch = True
    paper = "2402.01306"

    def __init__(
        self,
        policy: Policy,
        *,
        beta: float = 0.1,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        **shared: Unpack[SharedArgs],
    ) -> None:
        super().__init__(policy, **shared)
        self.beta = positive("beta", beta, usual=0.1)
        what = "a weight, 1 as published"
        self.desirable_weight = within("desirable_weight", desirable_weight, 0, math.inf, what=what)
        self.undesirable_weight = within(
            "undesirable_weight", undesirable_weight, 0, math.inf, what=what
        )

    def setup(self, stage: str) -> None:
        size = data_of(self.trainer).batch_size
        if stage == "fit" and size < 2:
            raise Refusal(
                f"KTO estimates its KL from responses after other prompts of the batch, but "
                f"data.batch_size={size}; set data.batch_size to 2 or more"
            )

    def couple(self, batch: Batch) -> Batch:
        whole = batch.whole or batch
        kl = self._kl(batch, whole).expand(whole.tokens.num_responses)
        notes = replace(whole.notes, response={**whole.notes.response, "kl": kl})
        return replace(whole, notes=notes)

    def response_loss(
        self, log_ratio: Tensor, desirable: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        kl = batch.notes.response["kl"].to(log_ratio)[0]
        losses = kto_loss(
            log_ratio,
            desirable,
            kl=kl,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        return losses, {"rewards": self.beta * log_ratio, "threshold": self.beta * kl, "kl": kl}

    def _kl(self, batch: Batch, whole: Batch) -> Tensor:
        """The estimate over all processes; each runs its own responses after other prompts."""
        tokens = whole.tokens
        mine = range(tokens.num_responses) if batch.local is None else batch.local
        dtype = torch.promote_types(torch.float32, next(self.policy.parameters()).dtype)
        weight = whole.view.response["weight"].to(self.device, dtype)
        total = torch.zeros((), device=self.device, dtype=dtype)
        if len(tokens.prompt_lengths) > 1:
            room = self.policy.spec.context_length
            foreign, order = mismatched(tokens, mine, context_length=room)
            for index in micro_batches(foreign, batch.micro_batch_tokens):
                part = foreign.select(index)
                policy = self.policy.token_logps(part).logps
                assert self.reference is not None
                gap = (policy - self.reference.token_logps(part).logps).to(dtype)
                often = weight[sent([order[i] for i in index], weight.device)]
                total += (gap * often[part.owner()]).sum()
        # Groups without a counterpart (a batch that ties left with one group) count as distance 0.
        total = self.sum_over_processes(total)
        often = weight.sum()
        return (total / torch.where(often > 0, often, torch.ones_like(often))).clamp(min=0)


def mismatched(
    tokens: FlatTokens, responses: Sequence[int], *, context_length: int
) -> tuple[FlatTokens, list[int]]:
    """Some responses, each after the prompt of the next group instead of its own.

    Args:
        tokens: the batch; its prompts are those of its groups, in order.
        responses: which responses.
        context_length: most tokens of prompt and response together.

    Returns:
        The responses in the order of their new prompts, none if ``responses`` is empty; and which
        response of the batch each of them is.
    """
    count = len(tokens.prompt_lengths)
    prompts = tokens.prompt_ids.split(tokens.prompt_lengths)
    parts = tokens.response_ids.split(tokens.lengths)
    by_prompt: dict[int, list[int]] = {}
    for i in responses:
        by_prompt.setdefault((tokens.prompt_of[i] + 1) % count, []).append(i)
    order = sorted(by_prompt)
    heads = []
    for p in order:
        room = context_length - max(tokens.lengths[i] for i in by_prompt[p])
        heads.append(prompts[p][-max(room, 1) :])
    members = [i for p in order for i in by_prompt[p]]
    none = tokens.response_ids[:0]
    foreign = FlatTokens(
        prompt_ids=torch.cat([none, *heads]),
        prompt_lengths=[len(h) for h in heads],
        response_ids=torch.cat([none, *(parts[i] for i in members)]),
        lengths=[tokens.lengths[i] for i in members],
        prompt_of=[n for n, p in enumerate(order) for _ in by_prompt[p]],
    )
    return foreign, members
