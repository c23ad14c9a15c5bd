"""The paper's 1-D contextual bandit: a prompt is one context, a response one of 100 actions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_pref.functional.bandit import ACTIONS, RewardName, action_rewards, reference_probs
from lit_pref.functional.bandit_probe import bandit_probe
from lit_pref.functional.contexts import TRAIN_POOL, VALIDATION_POOL
from lit_pref.functional.rng import permutation, stream_position
from lit_pref.tasks.base import Task
from lit_pref.types import Group, Prompt, Refusal, RewardSource

__all__ = ["ActionReward", "ContextualBandit"]

_STEPS, _BATCH, _LR = 100, 128, 0.01
_LIMIT = 0.05  # nats


class ContextualBandit(Task):
    """The 1-D contextual bandit (arXiv 2404.14367, section 4): an MLP over 100 actions.

    Contexts are a fixed table (``functional.contexts``); a prompt's id is its row. Training
    prompts are ``train_prompts`` of the first 1000 rows, chosen by ``seed`` and the same for the
    run; validation prompts are the last 100 rows, for every seed. The reward does not depend on
    the context, but the network has to find that out. Everything about a policy is known exactly:
    see ``exact``.

    Args:
        seed: chooses the training prompts.
        reward: ``r1`` peaks where the initial policy is unlikely, ``r2`` at its mode;
            ``r1_wide`` and ``r1_wider`` are wider forms of ``r1``.
        train_prompts: number of training prompts, at most 1000.
        validation_prompts: number of validation prompts, at most 100.
        offline_prompts: groups sampled once from the initial policy as offline data.
        init_seed: of the supervised start's batches.

    Raises:
        Refusal: a count out of range, or an unknown reward.

    >>> [p.id for p in ContextualBandit(seed=0, validation_prompts=2).validation()]
    [1000, 1001]
    """

    name = "contextual_bandit"
    max_new_tokens = 1

    def __init__(
        self,
        *,
        seed: int,
        reward: RewardName = "r1",
        train_prompts: int = 10,
        validation_prompts: int = VALIDATION_POOL,
        offline_prompts: int = 10,
        init_seed: int = 0,
    ) -> None:
        _in_range("task.train_prompts", train_prompts, 1, TRAIN_POOL)
        _in_range("task.validation_prompts", validation_prompts, 1, VALIDATION_POOL)
        _in_range("task.offline_prompts", offline_prompts, 0, None)
        self.seed, self.init_seed = seed, init_seed
        self.train_prompts, self.validation_prompts = train_prompts, validation_prompts
        self.offline_prompts = offline_prompts
        self.rewards = action_rewards(reward)
        self._reward = ActionReward(reward=reward)

    def prompts(self) -> list[Prompt]:
        """``train_prompts`` contexts, a function of ``seed`` alone."""
        order = permutation(TRAIN_POOL, self.seed, "contextual_bandit", "prompts")
        return [_prompt(i) for i in order[: self.train_prompts]]

    def validation(self) -> list[Prompt]:
        """``validation_prompts`` contexts that no run trains on, the same for every seed."""
        return [_prompt(TRAIN_POOL + i) for i in range(self.validation_prompts)]

    def decode(self, ids: list[int]) -> str:
        """The number of the action."""
        return " ".join(map(str, ids))

    def true_reward(self) -> RewardSource:
        """The reward of the action; the preference label is a comparison of these."""
        return self._reward

    def fingerprint(self) -> str:
        """The initial policy depends on ``init_seed`` alone, not on the reward."""
        return f"{self.name}-v1-init_seed={self.init_seed}"

    def initialise(self, model: Any, *, cache_dir: str | Path | None = None) -> None:
        """Train the network to the closed form: exact KL over the training pool, Adam, 100 steps.

        It takes a fraction of a second, so nothing is cached.

        Args:
            model: the network of ``model=context_mlp``, in place.
            cache_dir: not used.

        Raises:
            Refusal: the model does not fit the task.
            RuntimeError: its distance to the closed form stayed above 0.05 nats.
        """
        table = getattr(model, "table", None)
        if table is None or len(table) < TRAIN_POOL + VALIDATION_POOL:
            raise Refusal(
                "task=contextual_bandit needs a model with a table of "
                f"{TRAIN_POOL + VALIDATION_POOL} contexts; got {type(model).__name__}. Use "
                "model=context_mlp"
            )
        if model.head.out_features != ACTIONS:
            raise Refusal(
                f"task=contextual_bandit has {ACTIONS} actions; got model.actions="
                f"{model.head.out_features}"
            )
        with torch.enable_grad(), torch.inference_mode(False):
            _supervised_start(model, self.init_seed)
        ids = torch.arange(TRAIN_POOL, TRAIN_POOL + VALIDATION_POOL)
        with torch.no_grad():
            distance = _start_kl(model, ids).item()
        if not distance < _LIMIT:
            raise RuntimeError(
                f"the supervised start of task=contextual_bandit ended {distance:.3g} nats from "
                f"the closed form; expected less than {_LIMIT}"
            )

    def exact(self, policy: Any) -> dict[str, float]:
        """What a policy does on the validation contexts, as expectations without sampling.

        Args:
            policy: with ``action_logps``.

        Returns:
            See ``functional.bandit_probe.bandit_probe``.
        """
        ids = torch.tensor([p.id for p in self.validation()])
        with torch.no_grad():
            logps = policy.action_logps(ids).double().cpu()
        return bandit_probe(logps, rewards=self.rewards, reference=reference_probs())


class ActionReward:
    """The true reward ``exp(-((a - peak) / width)^2)`` of an action.

    Args:
        reward: see ``lit_pref.functional.bandit.action_rewards``.
    """

    version = "1"

    def __init__(self, *, reward: RewardName) -> None:
        self._table = action_rewards(reward).tolist()
        self.name = f"contextual_bandit/{reward}"

    def score(self, groups: Sequence[Group]) -> list[float]:
        """One number per response, groups in order, responses in order.

        Raises:
            ValueError: a response that is not one action in 0..99.
        """
        return [self._score(r.ids) for g in groups for r in g.responses]

    def _score(self, ids: list[int]) -> float:
        if len(ids) != 1 or not 0 <= ids[0] < ACTIONS:
            raise ValueError(f"expected one action in 0..{ACTIONS - 1}; got {ids}")
        return self._table[ids[0]]


# --------------------------------------------------------------------------- start and checks


def _start_kl(model: Any, ids: Tensor) -> Tensor:
    """Mean exact KL(pi || p) over contexts, in nats."""
    logps = model(ids).log_softmax(-1)
    target = reference_probs().log().to(logps)
    return (logps.exp() * (logps - target)).sum(-1).mean()


def _supervised_start(model: Any, init_seed: int) -> None:
    """Deviation: batches of the whole training pool; the paper's code has the run's prompts."""
    optimizer = torch.optim.Adam(model.parameters(), lr=_LR)
    for step in range(_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = _LR * (1 - step / _STEPS)
        places = range(step * _BATCH, (step + 1) * _BATCH)
        key = (init_seed, "contextual_bandit", "start")
        ids = torch.tensor([stream_position(TRAIN_POOL, i, *key)[0] for i in places])
        optimizer.zero_grad()
        _start_kl(model, ids).backward()
        optimizer.step()


def _prompt(context: int) -> Prompt:
    return Prompt(id=context, text=str(context), ids=[context])


def _in_range(key: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        wanted = f"at least {low}" if high is None else f"from {low} to {high}"
        raise Refusal(f"{key} must be {wanted}; got {value}")
