"""A fixed random reward that a learned one stands in for: the small twin of AlpacaFarm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lit_pref.functional.rng import generator
from lit_pref.functional.words import (
    COLON,
    LONGEST,
    TOPICS,
    VOCABULARY,
    prompt_ids,
    response_ids,
    topic_of,
)
from lit_pref.tasks.words import WordTask, flat_responses, read_groups
from lit_pref.types import Group, Refusal, Response

__all__ = ["GoldReward", "GoldRewardTask"]

_FEATURES, _HIDDEN = 24, 24
_CORPUS = range(3_000_000, 3_001_024)
"""Prompts whose corpus responses give the zero and the unit of the gold reward."""


class GoldRewardTask(WordTask):
    """Preferences by a reward that no one writes down (arXiv 2404.14367, section 5, AlpacaFarm).

    The gold reward labels the preference pairs and measures success; training sees a reward model
    learned from the pairs. So the policy can find responses that the model overrates.

    Args:
        name: of the task.
        tokenizer: the model's.
        gold_seed: which random reward.
        pairs: see ``WordTask``.
        rivals: file of groups that another model sampled; the second response of each pair is
            then its. None: both are of the file of pairs.
        train_prompts: see ``WordTask``.
        validation_prompts: see ``WordTask``.
        max_new_tokens: see ``WordTask``.

    Raises:
        Refusal: a file cannot be used, or the rivals lack a prompt of the pairs.
    """

    def __init__(
        self,
        *,
        name: str,
        tokenizer: Any,
        gold_seed: int = 0,
        pairs: str | None = None,
        rivals: str | None = None,
        train_prompts: int = 3000,
        validation_prompts: int = 128,
        max_new_tokens: int = LONGEST,
    ) -> None:
        super().__init__(
            name=name,
            tokenizer=tokenizer,
            pairs=pairs,
            train_prompts=train_prompts,
            validation_prompts=validation_prompts,
            max_new_tokens=max_new_tokens,
        )
        self._reward = GoldReward(seed=gold_seed)
        self._rivals = rivals
        self._rival_responses: dict[int, Response] | None = None

    def edited(self, group: Group) -> Group:
        """The group with a rival's response in place of its second one, where there are rivals."""
        if self._rivals is None:
            return group
        if self._rival_responses is None:
            theirs = read_groups("task.rivals", self._rivals)
            self._rival_responses = {g.prompt.id: g.responses[0] for g in theirs}
        if group.prompt.id not in self._rival_responses:
            raise Refusal(
                f"task.rivals={self._rivals} has no response to prompt {group.prompt.id} of "
                "task.pairs; expected the same prompts in both: leave both out, and they are made"
            )
        # The first responses of both models were drawn with the same random numbers.
        return replace(
            group, responses=[group.responses[1], self._rival_responses[group.prompt.id]]
        )

    def true_reward(self) -> GoldReward:
        """The gold reward, in standard deviations of the corpus."""
        return self._reward


class GoldReward:
    r"""A fixed random network on words, neighbours and topic; its unit is the corpus' deviation.

    .. math:: g(x, y) = \frac{1}{s}\Big(w \cdot \tanh\big(U\,\tfrac{1}{|y|}\sum_t
       \tanh(A_{y_t} + B_{y_{t-1}} + C_{topic(x)})\big) - m\Big)

    The entries of A, B, C, U and w are normal; m and s are mean and standard deviation over
    corpus responses, so that the corpus has mean 0 and deviation 1. The mean over tokens makes it
    indifferent to length as such.

    Args:
        seed: of the entries.

    Raises:
        Refusal: a seed that is no whole number.
    """

    def __init__(self, *, seed: int = 0) -> None:
        if not isinstance(seed, int):
            raise Refusal(f"task.gold_seed must be a whole number, got {seed!r}")
        self.seed = seed
        self.name, self.version = "gold_reward", f"1/{seed}"

    def score(self, groups: Sequence[Group]) -> list[float]:
        """One number per response, groups in order, responses in order."""
        mean, deviation = _unit(self.seed)
        pairs = flat_responses(groups)
        return [(raw - mean) / deviation for raw in _raw(self.seed, pairs).tolist()]


def _raw(seed: int, pairs: Sequence[tuple[list[int], list[int]]]) -> Tensor:
    """[B] outputs of the network before they are brought to the corpus' unit."""
    word, before, topic, mix, out = _weights(seed)
    counts = torch.tensor([len(ids) for _, ids in pairs])
    owner = torch.repeat_interleave(torch.arange(len(pairs)), counts)
    ids = torch.tensor([t for _, ids in pairs for t in ids], dtype=torch.long)
    last = torch.tensor([t for _, ids in pairs for t in [COLON, *ids[:-1]]], dtype=torch.long)
    topics = torch.tensor([topic_of(prompt) for prompt, _ in pairs], dtype=torch.long)
    seen = torch.tanh(word[ids] + before[last] + topic[topics[owner]])
    mean = torch.zeros(len(pairs), _FEATURES, dtype=seen.dtype).index_add(0, owner, seen)
    return torch.tanh((mean / counts[:, None]) @ mix) @ out


@cache
def _weights(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    draw = generator("gold_reward", seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=draw, dtype=torch.float64)

    return (
        normal(len(VOCABULARY), _FEATURES),
        normal(len(VOCABULARY), _FEATURES),
        normal(TOPICS, _FEATURES, scale=0.5),
        normal(_FEATURES, _HIDDEN),
        normal(_HIDDEN),
    )


@cache
def _unit(seed: int) -> tuple[float, float]:
    pairs = [
        (prompt_ids(n), ids) for n, ids in zip(_CORPUS, response_ids(list(_CORPUS)), strict=True)
    ]
    raw = _raw(seed, pairs)
    return float(raw.mean()), float(raw.std())
