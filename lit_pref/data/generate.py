"""Sampling and scoring the groups of a round, over processes, with scoring beside sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from lit_pref.data.gather import gather_strided
from lit_pref.rewards.scoring import Scoring
from lit_pref.tasks.base import Task
from lit_pref.types import Group, Policy, PreferenceOracle, Prompt, RewardSource, Sampler

__all__ = ["generate_groups", "occurrences"]


def occurrences(prompts: Sequence[Prompt]) -> list[int]:
    """How often the same prompt came before, for each: repeated prompts get other samples."""
    seen: dict[int, int] = {}
    out = []
    for prompt in prompts:
        out.append(seen.get(prompt.id, 0))
        seen[prompt.id] = out[-1] + 1
    return out


def generate_groups(
    policy: Policy,
    prompts: Sequence[Prompt],
    *,
    task: Task,
    sampler: Sampler,
    reward: RewardSource | PreferenceOracle | None,
    key: tuple[int | str, ...],
    responses: int,
    rank: int = 0,
    world: int = 1,
    context: Callable[[], AbstractContextManager[Any]],
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    on_failure: Callable[[list[Group]], None] = lambda groups: None,
) -> list[Group]:
    """Sample and score one group per prompt; each process does its stride, all get the whole.

    Finished groups are scored in other threads while others are still sampled; see
    ``rewards.scoring``. A reward that fails stops sampling at once.

    Args:
        policy: what samples.
        prompts: the prompts, over all processes.
        task: decodes responses and knows the end-of-sequence tokens.
        sampler: how to sample.
        reward: how to score; None leaves rewards empty.
        key: coordinates of the draws.
        responses: responses per prompt.
        rank: this process.
        world: number of processes.
        context: entered around sampling (autocast of the trainer's precision).
        progress: told (stage, responses done, responses in all).
        on_failure: told the groups that were there when sampling or scoring failed.

    Raises:
        RewardError: the reward failed.
    """
    counts = occurrences(prompts)
    mine = list(range(len(prompts)))[rank::world]
    done: dict[int, Group] = {}
    whole = len(prompts[rank::world]) * responses
    was_training = isinstance(policy, torch.nn.Module) and policy.training
    if was_training:
        policy.eval()  # type: ignore[attr-defined]
    try:
        with nullcontext() if reward is None else Scoring(reward) as scoring:

            def on_group(place: int, group: Group) -> None:
                done[place] = group
                if scoring is not None:
                    scoring.add(group)
                progress("generating", len(done) * responses, whole)

            with context():
                sampler.sample(
                    policy,
                    [prompts[i] for i in mine],
                    key=key,
                    occurrences=[counts[i] for i in mine],
                    responses=responses,
                    end_ids=task.eos_ids,
                    text=task.decode,
                    on_group=on_group,
                )
            if scoring is not None:
                scoring.finish(lambda count: progress("scoring", count, whole))
    except BaseException:
        on_failure([done[i] for i in sorted(done)])
        raise
    finally:
        if was_training:
            policy.train()  # type: ignore[attr-defined]
    return gather_strided([done[i] for i in range(len(mine))], world)
