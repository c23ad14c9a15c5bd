"""The paper's token bandit: one prompt token, nine response tokens, a reward for each token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from lit_pref.functional.bandit import (
    ACTIONS,
    RESPONSE_TOKENS,
    RewardName,
    action_rewards,
)
from lit_pref.functional.rng import stream_position
from lit_pref.tasks.bandit_start import START_VERSION, start_weights
from lit_pref.tasks.base import Task
from lit_pref.types import Group, Prompt, Refusal, RewardSource

__all__ = ["RewardPositions", "TokenBandit", "TokenBanditReward"]

RewardPositions = Literal["response", "prompt_and_response"]


class TokenBandit(Task):
    """The 10-token bandit (arXiv 2404.14367, section 4): GPT-nano, vocabulary of 100.

    The prompt is one token, the response nine more; there is no end of sequence. Training prompts
    are a seeded permutation of all tokens, cut (or repeated) to ``train_prompts``, and stay the
    same for the run. Validation prompts are spread evenly over all tokens: with the default, each
    of the 100 once. A prompt's id is its token. Text is token numbers with spaces between.

    Deviation: the paper's evaluation prompts are other draws of the same token; all 100 leave
    nothing to chance. Its prompts are drawn with replacement, these are distinct up to 100.

    Args:
        seed: chooses the training prompts.
        reward: ``r1`` peaks where the initial policy is unlikely, ``r2`` at its mode;
            ``r1_wide`` and ``r1_wider`` are wider forms of ``r1``.
        train_prompts: number of training prompts.
        validation_prompts: number of validation prompts, at most 100.
        offline_prompts: groups sampled once from the initial policy as offline data.
        reward_positions: ``response`` averages over the nine response tokens;
            ``prompt_and_response`` over the prompt token too, as the paper's code does (so that
            0.918 is the best mean reward).
        init_seed: of the supervised start. It is apart from ``seed`` so that runs with different
            seeds share their initial policy, hence their reference.

    Raises:
        Refusal: a count out of range, or an unknown reward.

    >>> [p.text for p in TokenBandit(seed=0, validation_prompts=4).validation()]
    ['0', '25', '50', '75']
    """

    name = "token_bandit"
    max_new_tokens = RESPONSE_TOKENS

    def __init__(
        self,
        *,
        seed: int,
        reward: RewardName = "r1",
        train_prompts: int = 10,
        validation_prompts: int = ACTIONS,
        offline_prompts: int = 10,
        reward_positions: RewardPositions = "response",
        init_seed: int = 0,
    ) -> None:
        _in_range("task.train_prompts", train_prompts, 1, None)
        _in_range("task.validation_prompts", validation_prompts, 1, ACTIONS)
        _in_range("task.offline_prompts", offline_prompts, 0, None)
        self.seed, self.init_seed = seed, init_seed
        self.train_prompts, self.validation_prompts = train_prompts, validation_prompts
        self.offline_prompts = offline_prompts
        self._reward = TokenBanditReward(reward=reward, positions=reward_positions)

    def prompts(self) -> list[Prompt]:
        """``train_prompts`` prompts, a function of ``seed`` alone."""
        key = (self.seed, "token_bandit", "prompts")
        return [_prompt(stream_position(ACTIONS, i, *key)[0]) for i in range(self.train_prompts)]

    def validation(self) -> list[Prompt]:
        """``validation_prompts`` prompts, ascending, the same for every seed."""
        count = self.validation_prompts
        return [_prompt(i * ACTIONS // count) for i in range(count)]

    def decode(self, ids: list[int]) -> str:
        """Token numbers with spaces between."""
        return " ".join(map(str, ids))

    def true_reward(self) -> RewardSource:
        """Mean of the token rewards; the preference label is a comparison of these."""
        return self._reward

    def fingerprint(self) -> str:
        """The initial policy depends on ``init_seed`` alone, not on ``seed`` or the reward."""
        return f"{self.name}-v{START_VERSION}-init_seed={self.init_seed}"

    def initialise(self, model: Any, *, cache_dir: str | Path | None = None) -> None:
        """Give the model the weights of the supervised start towards the closed form.

        A fresh model of the same configuration is trained (about a second on one core) and its
        weights are copied, so the given weights and the run's seed do not matter.

        Args:
            model: a Hugging Face causal LM with a vocabulary of 100, in place.
            cache_dir: folder that keeps the weights for later runs; None trains each time.

        Raises:
            Refusal: the model does not fit the task.
            RuntimeError: its distance to the closed form stayed above 0.05 nats a token.
        """
        _check_model(model.config)
        weights = start_weights(model, init_seed=self.init_seed, cache_dir=cache_dir)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])


class TokenBanditReward:
    """The true reward: mean over tokens of ``exp(-((a - peak) / width)^2)``.

    Args:
        reward: see ``lit_pref.functional.bandit.action_rewards``.
        positions: which tokens the mean is over; see ``TokenBandit``.
    """

    def __init__(self, *, reward: RewardName, positions: RewardPositions = "response") -> None:
        self._table = action_rewards(reward).tolist()
        if positions not in get_args(RewardPositions):
            raise Refusal(
                f"task.reward_positions must be one of {', '.join(get_args(RewardPositions))}; "
                f"got {positions!r}"
            )
        self._with_prompt = positions == "prompt_and_response"
        self.name = f"token_bandit/{reward}"
        self.version = f"1/{positions}"

    def score(self, groups: Sequence[Group]) -> list[float]:
        """One number per response, groups in order, responses in order.

        Raises:
            ValueError: a response that is not nine tokens in 0..99.
        """
        return [self._score(g.prompt.ids, r.ids) for g in groups for r in g.responses]

    def _score(self, prompt: list[int], response: list[int]) -> float:
        if len(response) != RESPONSE_TOKENS or not all(0 <= t < ACTIONS for t in response):
            raise ValueError(
                f"expected {RESPONSE_TOKENS} tokens in 0..{ACTIONS - 1}; got {response}"
            )
        ids = [*prompt, *response] if self._with_prompt else response
        return sum(self._table[t] for t in ids) / len(ids)


# --------------------------------------------------------------------------- checks


def _prompt(token: int) -> Prompt:
    return Prompt(id=token, text=str(token), ids=[token])


def _in_range(key: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        wanted = f"at least {low}" if high is None else f"from {low} to {high}"
        raise Refusal(f"{key} must be {wanted}; got {value}")


def _check_model(config: Any) -> None:
    vocab, context = config.vocab_size, getattr(config, "max_position_embeddings", None)
    if vocab != ACTIONS or (context is not None and context < RESPONSE_TOKENS + 1):
        raise Refusal(
            f"task=token_bandit needs a model with a vocabulary of {ACTIONS} and a context of at "
            f"least {RESPONSE_TOKENS + 1} tokens; got {vocab} and {context}. Use model=gpt_nano"
        )
