"""Measuring a policy by sampling: reward, KL to the reference, lengths, wins, preferred pairs.

One place for the Evaluation callback, Lightning's validate and test, and ``lit-pref evaluate``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from lit_pref.data.gather import gather_strided
from lit_pref.data.generate import generate_groups
from lit_pref.functional.statistics import win_share
from lit_pref.rewards.base import measuring
from lit_pref.tasks.base import Task
from lit_pref.types import FlatTokens, Forward, Group, Policy, Prompt, RewardSource, Sampler

__all__ = [
    "Measured",
    "PromptBatch",
    "PromptLoader",
    "measure",
    "measure_module",
    "pair_margins",
    "pairs_by_reward",
    "sequence_logps",
    "win_shares",
]

PROMPTS_AT_ONCE = 32
"""Prompts of one step of Lightning's validate, test and predict."""


@dataclass(slots=True)
class PromptBatch:
    """Prompts to respond to.

    Attributes:
        prompts: the prompts, over all processes.
        stage: ``"validation"``, ``"test"`` or ``"predict"``: also a coordinate of every draw.
    """

    prompts: list[Prompt]
    stage: str

    def to(self, device: torch.device | str) -> PromptBatch:
        """Prompts have no tensors."""
        return self


class PromptLoader:
    """Batches of prompts, the same for every process, in order.

    Args:
        prompts: all prompts.
        stage: see ``PromptBatch``.
        size: prompts of a batch.
    """

    def __init__(
        self, prompts: Sequence[Prompt], stage: str, *, size: int = PROMPTS_AT_ONCE
    ) -> None:
        self.prompts, self.stage, self.size = list(prompts), stage, size

    def __len__(self) -> int:
        return -(-len(self.prompts) // self.size)

    def __iter__(self) -> Iterator[PromptBatch]:
        for start in range(0, len(self.prompts), self.size):
            yield PromptBatch(self.prompts[start : start + self.size], self.stage)


@dataclass(slots=True)
class Measured:
    """Samples of a policy and their log-probs.

    Attributes:
        groups: one group per prompt.
        logps: log-prob of every response by model (``"policy"``, ``"reference"``), in order.
    """

    groups: list[Group]
    logps: dict[str, list[float]] = field(default_factory=dict)

    def by_group(self, values: Sequence[float]) -> list[float]:
        """Mean over the responses of each group."""
        out, start = [], 0
        for group in self.groups:
            count = len(group.responses)
            out.append(sum(values[start : start + count]) / count)
            start += count
        return out

    def kl(self) -> list[float]:
        """Log-ratio of every response, in nats: its mean estimates KL(policy, reference)."""
        return [p - r for p, r in zip(self.logps["policy"], self.logps["reference"], strict=True)]

    def metrics(self) -> dict[str, tuple[float, int]]:
        """Mean and weight (responses, or tokens) of each metric.

        ``reward``, ``kl`` in nats per response, ``entropy`` in nats per token, ``mean_length``
        in tokens, ``finished``.
        """
        flat = [r for g in self.groups for r in g.responses]
        count, tokens = len(flat), sum(len(r.ids) for r in flat)
        out = {
            "mean_length": (tokens / count, count),
            "finished": (sum(r.finished for r in flat) / count, count),
        }
        if all(r.reward is not None for r in flat):
            out["reward"] = (sum(r.reward for r in flat) / count, count)  # type: ignore[misc]
        if "policy" in self.logps:
            out["entropy"] = (-sum(self.logps["policy"]) / max(tokens, 1), tokens)
        if "reference" in self.logps:
            out["kl"] = (sum(self.kl()) / count, count)
        return out


def measure(
    policy: Policy,
    prompts: Sequence[Prompt],
    *,
    task: Task,
    sampler: Sampler,
    reward: RewardSource | None,
    key: tuple[int | str, ...],
    responses: int,
    forward: Forward,
    models: Sequence[str],
    rank: int,
    world: int,
    context: Callable[[], AbstractContextManager[Any]],
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Measured:
    """Sample, score, and compute log-probs; each process does its stride, all get the whole.

    Args:
        policy: what samples.
        prompts: over all processes.
        task: decodes responses.
        sampler: how to sample; KL and entropy are right for plain sampling alone.
        reward: how to score; None leaves rewards empty.
        key: coordinates of the draws.
        responses: responses per prompt.
        forward: computes log-probs.
        models: whose log-probs of the samples are wanted (``"policy"``, ``"reference"``).
        rank: this process.
        world: number of processes.
        context: entered around sampling.
        progress: told (stage, responses done, responses in all).
    """
    groups = generate_groups(
        policy,
        prompts,
        task=task,
        sampler=sampler,
        reward=reward,
        key=key,
        responses=responses,
        rank=rank,
        world=world,
        context=context,
        progress=progress,
    )
    logps = sequence_logps(forward, models, groups, rank=rank, world=world)
    return Measured(groups=groups, logps=logps)


def measure_module(
    data: Any,
    module: Any,
    prompts: Sequence[Prompt],
    *,
    key: tuple[int | str, ...],
    responses: int,
) -> Measured:
    """``measure`` for an objective and a DataModule that are attached to a trainer.

    Args:
        data: a ``RoundDataModule``; its count of evaluation queries grows.
        module: the objective.
        prompts: over all processes.
        key: coordinates of the draws.
        responses: responses per prompt.
    """
    trainer = data.trainer
    reward = data.task.true_reward() or measuring(data.reward)
    if module.reference is not None:
        module.reference.to(module.device)
    measured = measure(
        module.policy,
        prompts,
        task=data.task,
        sampler=data.sampler.plain(),
        reward=reward,
        key=key,
        responses=responses,
        forward=module.forward_pass(data.micro_batch_tokens),
        models=["policy"] + ([] if module.reference is None else ["reference"]),
        rank=trainer.global_rank,
        world=trainer.world_size,
        context=trainer.precision_plugin.forward_context,
    )
    if reward is not None:
        data.counters["eval_queries"] += sum(len(g.responses) for g in measured.groups)
    return measured


def sequence_logps(
    forward: Forward, models: Sequence[str], groups: list[Group], *, rank: int, world: int
) -> dict[str, list[float]]:
    """Log-prob of every response under each model; each process scores its stride.

    Args:
        forward: computes log-probs of tokens.
        models: names that ``forward`` knows.
        groups: over all processes.
        rank: this process.
        world: number of processes.
    """
    mine = groups[rank::world]
    tokens = FlatTokens.from_groups(mine)
    owner = tokens.owner()
    sums: dict[str, list[float]] = {}
    for name in models:
        logps = forward(name, tokens).logps.double()
        zeros = torch.zeros(tokens.num_responses, dtype=torch.float64)
        sums[name] = zeros.index_add(0, owner, logps).tolist()
    per_group, start = [], 0
    for group in mine:
        part = slice(start, start + len(group.responses))
        per_group.append({name: sums[name][part] for name in models})
        start += len(group.responses)
    everything = gather_strided(per_group, world)
    return {name: [x for group in everything for x in group[name]] for name in models}


def win_shares(groups: Sequence[Group], others: Sequence[Group]) -> list[float]:
    """For each prompt, the share of comparisons that its responses win over the others'."""
    return [win_share(_rewards(a), _rewards(b)) for a, b in zip(groups, others, strict=True)]


def pairs_by_reward(groups: Sequence[Group]) -> list[Group]:
    """Best and worst response of each group as a preference pair; ties give none."""
    out = []
    for group in groups:
        rewards = _rewards(group)
        best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
        if rewards[best] > rewards[worst]:
            pair = [group.responses[best], group.responses[worst]]
            out.append(Group(prompt=group.prompt, responses=pair, source=group.source))
    return out


def pair_margins(logps: dict[str, list[float]]) -> list[float]:
    """Chosen minus rejected log-ratio of each pair (log-prob where there is no reference).

    Args:
        logps: by model, of groups of two responses, the chosen one first.
    """
    values = logps["policy"]
    if "reference" in logps:
        values = [p - r for p, r in zip(values, logps["reference"], strict=True)]
    return [chosen - rejected for chosen, rejected in zip(values[::2], values[1::2], strict=True)]


def _rewards(group: Group) -> list[float]:
    rewards = [r.reward for r in group.responses]
    assert None not in rewards
    return rewards  # type: ignore[return-value]
