"""The paper's length tasks in small: shorter is better, or nearer to the typical length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch

from lit_pref.functional.rng import uniforms
from lit_pref.functional.words import END, LONGEST, TYPICAL, text_of
from lit_pref.tasks.words import WordTask
from lit_pref.types import Group, Refusal, Response

__all__ = ["LengthReward", "LengthTask", "Wanted"]

Wanted = Literal["shortest", "typical"]


class LengthTask(WordTask):
    """Min, Mode and Skew Length (arXiv 2404.14367, section 4) for a small language model.

    The true reward is :math:`-|y|` (``wanted="shortest"``) or :math:`-||y| - m|`
    (``"typical"``), with :math:`|y|` the tokens of a response, its end included. Of two responses
    the one with the larger true reward is preferred.

    Skew Length is ``shortest`` on preference data in which a share of the responses was cut at a
    geometric length, so that the data overlaps little with the initial policy.

    Deviation: the paper tells neither how many completions of Skew Length are cut nor where; the
    defaults of ``task=skew_length`` are ours. A cut response ends with an end of sequence.

    Args:
        name: of the task.
        tokenizer: the model's.
        wanted: ``shortest`` or ``typical``.
        mode: m in tokens: the typical length, for ``typical``.
        cut_share: share of the responses of the preference data that are cut.
        cut_mean: mean of the geometric length at which they are cut, in tokens, from 1.
        pairs: see ``WordTask``.
        train_prompts: see ``WordTask``.
        validation_prompts: see ``WordTask``.
        max_new_tokens: see ``WordTask``.

    Raises:
        Refusal: a number out of range.
    """

    def __init__(
        self,
        *,
        name: str,
        tokenizer: Any,
        wanted: Wanted,
        mode: int = TYPICAL,
        cut_share: float = 0.0,
        cut_mean: float = 7.0,
        pairs: str | None = None,
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
        if not 0 <= cut_share <= 1 or not cut_mean >= 1:
            raise Refusal(
                "task.cut_share must be in [0, 1] and task.cut_mean at least 1 token, got "
                f"{cut_share} and {cut_mean}"
            )
        self.cut_share, self.cut_mean = cut_share, cut_mean
        self._reward = LengthReward(name=name, wanted=wanted, mode=mode)

    def true_reward(self) -> LengthReward:
        """Minus the length, or minus its distance to the mode, in tokens."""
        return self._reward

    def edited(self, group: Group) -> Group:
        """The group with some of its responses cut, the same ones every time."""
        if self.cut_share == 0:
            return group
        keys = [("skew_length", "cut", group.prompt.id, k) for k in range(len(group.responses))]
        draws = uniforms(keys, 2)
        chance = torch.log1p(-draws[:, 1]) / torch.log1p(torch.tensor(-1 / self.cut_mean))
        lengths = (1 + chance.floor()).tolist() if self.cut_mean > 1 else [1.0] * len(keys)
        cut = (draws[:, 0] < self.cut_share).tolist()
        responses = [
            _cut(r, int(length)) if each and length < len(r.ids) else r
            for r, each, length in zip(group.responses, cut, lengths, strict=True)
        ]
        return replace(group, responses=responses)


class LengthReward:
    """The true reward of a length task, in tokens.

    Args:
        name: of the task.
        wanted: ``shortest`` or ``typical``.
        mode: the length that ``typical`` measures from, in tokens.

    Raises:
        Refusal: an unknown ``wanted``, or a mode below 1.
    """

    def __init__(self, *, name: str, wanted: Wanted, mode: int = TYPICAL) -> None:
        if wanted not in get_args(Wanted):
            raise Refusal(f"task.wanted must be shortest or typical, got {wanted!r}")
        if not mode >= 1:
            raise Refusal(f"task.mode must be at least 1 token, got {mode}")
        self._target = 0 if wanted == "shortest" else mode
        self.name, self.version = name, f"1/{wanted}/{self._target}"

    def score(self, groups: Sequence[Group]) -> list[float]:
        """One number per response, groups in order, responses in order."""
        return [-float(abs(len(r.ids) - self._target)) for g in groups for r in g.responses]


def _cut(response: Response, length: int) -> Response:
    """The first tokens of a response with an end of sequence, ``length`` in all."""
    ids = [*response.ids[: length - 1], END]
    # Nothing sampled it, so no distribution has a log-prob for it.
    return Response(ids=ids, text=text_of(ids), behaviour="cut", finished=True)
