"""``reward=judge``: a language model behind an OpenAI-compatible server scores or compares."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Literal

from lit_pref.functional.rng import coordinate_seed
from lit_pref.rewards.background import run, run_limited
from lit_pref.rewards.base import at_least_one, reward_error, settings_version
from lit_pref.rewards.chat import Chat, check_instructions, fill, prompt_text
from lit_pref.rewards.http import CallFailed, http_counts
from lit_pref.types import Comparison, Group, Prompt, Refusal, Response

__all__ = ["JudgeOracle", "JudgeReward", "make_judge"]

POINTWISE = """You are a strict and fair judge. Rate how well the response answers the request.

[Request]
{prompt}

[Response]
{response}

Say in one sentence what is good and bad about it. Then end with one line "Score: N", where N is a \
whole number from {lowest} (useless) to {highest} (could not be better)."""

PAIRWISE = """You are a strict and fair judge. Decide which of two responses answers the request \
better. Neither their order nor their length counts.

[Request]
{prompt}

[Response A]
{first}

[Response B]
{second}

Say in one sentence what decides. Then end with one line "Verdict: A", "Verdict: B" or \
"Verdict: tie"."""

_SCORE = re.compile(r"score\W{0,6}(-?\d+(?:\.\d+)?)", re.I)
_VERDICT = re.compile(r"verdict\W{0,6}\b(a|b|tie)\b", re.I)
_VERDICTS = {"a": 1.0, "b": 0.0, "tie": 0.5}

Positions = Literal["both", "drawn"]


class JudgeReward:
    """Pointwise: the judge gives each response a mark, scaled to [0, 1].

    Args:
        chat: the judge.
        instructions: with ``{prompt}``, ``{response}``, ``{lowest}``, ``{highest}``; must lead to
            a line ``Score: N``.
        marks: lowest and highest mark.
        unclear: reward where the judge gives no mark after all tries; None stops the run.
    """

    def __init__(
        self,
        chat: Chat,
        *,
        instructions: str = POINTWISE,
        marks: Sequence[float] = (1, 10),
        unclear: float | None = None,
    ) -> None:
        if len(marks) != 2 or not marks[0] < marks[1]:
            raise Refusal(f"reward.marks must be [lowest, highest], got {list(marks)}")
        check_instructions(instructions, "{prompt}", "{response}")
        self.chat, self.instructions, self.marks = chat, instructions, tuple(marks)
        self.unclear = unclear
        self.name = f"judge:{chat.settings['model']}"
        self.version = settings_version(
            instructions=instructions, marks=list(marks), version=chat.version, **chat.settings
        )
        self.concurrency = chat.client.concurrency
        self.unclear_answers = 0

    def score(self, groups: Sequence[Group]) -> list[float]:
        """One number per response, groups in order, responses in order.

        Raises:
            RewardError: no usable answer.
        """
        calls = [functools.partial(self._one, g, r) for g in groups for r in g.responses]
        return run(run_limited(calls, self.chat.client.limit))

    def counts(self) -> dict[str, float]:
        """Since the start, for the log."""
        counts = http_counts(self.chat.client, self.chat.cache)
        return {**counts, "reward/unclear": self.unclear_answers}

    async def _one(self, group: Group, response: Response) -> float:
        low, high = self.marks
        text = fill(
            self.instructions,
            prompt=prompt_text(group.prompt),
            response=response.text,
            lowest=f"{low:g}",
            highest=f"{high:g}",
        )
        try:
            mark = float(await self.chat.ask(text, _SCORE))
            if low <= mark <= high:
                return (mark - low) / (high - low)
            error = CallFailed(f"the judge's mark {mark:g} is not from {low:g} to {high:g}")
            error.bad_reply = True
        except CallFailed as failed:
            error = failed
        if error.bad_reply and self.unclear is not None:
            self.unclear_answers += 1
            return self.unclear
        culprit = Group(prompt=group.prompt, responses=[response])
        raise reward_error(self, str(error), culprit) from None


class JudgeOracle:
    """Pairwise: the judge says which of two responses is better.

    Judges favour a position. ``positions="both"`` asks in both orders and takes the mean, so that
    a verdict that follows the position is a tie (``reward/undecided`` counts them); ``drawn`` asks
    once, in an order drawn by what is asked.

    Args:
        chat: the judge.
        instructions: with ``{prompt}``, ``{first}``, ``{second}``; must lead to a line
            ``Verdict: A``, ``B`` or ``tie``.
        positions: ``both`` or ``drawn``.
        opponents: each response is compared with the next so many in a circle; None: with all.
        unclear: what it counts as when the judge gives no verdict after all tries: 0.5, a tie, or
            None, which stops the run. Anything else would favour a position.
    """

    def __init__(
        self,
        chat: Chat,
        *,
        instructions: str = PAIRWISE,
        positions: Positions = "both",
        opponents: int | None = None,
        unclear: float | None = None,
    ) -> None:
        if positions not in ("both", "drawn"):
            raise Refusal(f"reward.positions must be both or drawn, got {positions!r}")
        if unclear is not None and unclear != 0.5:
            raise Refusal(
                "with reward.mode=pairwise, reward.unclear is 0.5 (no verdict is a tie) or null "
                f"(it stops the run), got {unclear}; other numbers would favour the response that "
                "was shown first"
            )
        check_instructions(instructions, "{prompt}", "{first}", "{second}")
        self.chat, self.instructions, self.positions = chat, instructions, positions
        self.opponents = opponents if opponents is None else at_least_one("opponents", opponents)
        self.unclear = unclear
        self.name = f"judge:{chat.settings['model']}"
        self.version = settings_version(
            instructions=instructions,
            positions=positions,
            opponents=opponents,
            version=chat.version,
            **chat.settings,
        )
        self.concurrency = chat.client.concurrency
        self.unclear_answers = self.undecided = 0

    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        """P(first is better) of each.

        Raises:
            RewardError: no usable answer.
        """
        return run(self._compare(comparisons))

    def counts(self) -> dict[str, float]:
        """Since the start, for the log."""
        counts = http_counts(self.chat.client, self.chat.cache)
        counts["reward/unclear"] = self.unclear_answers
        return {**counts, "reward/undecided": self.undecided}

    async def _compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        calls = []
        for c in comparisons:
            first, second = (c.group.responses[k] for k in (c.first, c.second))
            if self.positions == "both" or _first_comes_first(c.group.prompt, first, second):
                calls.append(functools.partial(self._one, c.group.prompt, first, second))
            if self.positions == "both" or not _first_comes_first(c.group.prompt, first, second):
                calls.append(functools.partial(self._turned, c.group.prompt, first, second))
        answers = await run_limited(calls, self.chat.client.limit)
        if self.positions == "drawn":
            return answers
        pairs = list(zip(answers[::2], answers[1::2], strict=True))
        self.undecided += sum(abs(there - back) == 1 for there, back in pairs)
        return [(there + back) / 2 for there, back in pairs]

    async def _turned(self, prompt: Prompt, first: Response, second: Response) -> float:
        return 1.0 - await self._one(prompt, second, first)

    async def _one(self, prompt: Prompt, first: Response, second: Response) -> float:
        text = fill(
            self.instructions, prompt=prompt_text(prompt), first=first.text, second=second.text
        )
        try:
            return _VERDICTS[(await self.chat.ask(text, _VERDICT)).lower()]
        except CallFailed as error:
            if error.bad_reply and self.unclear is not None:
                self.unclear_answers += 1
                return self.unclear
            culprit = Group(prompt=prompt, responses=[first, second])
            remark = f"\n  against: {second.text[:200]!r}"
            raise reward_error(self, str(error), culprit, remark) from None


def make_judge(
    *,
    mode: Literal["pairwise", "pointwise"],
    url: str,
    model: str,
    version: str = "1",
    instructions: str | None = None,
    positions: Positions = "both",
    opponents: int | None = None,
    marks: Sequence[float] = (1, 10),
    unclear: float | None = None,
    temperature: float = 0.0,
    max_tokens: int = 256,
    concurrency: int = 16,
    timeout: float = 60.0,
    retries: int = 4,
    backoff: float = 1.0,
    api_key_env: str | None = None,
    cache: str | None = None,
) -> JudgeReward | JudgeOracle:
    """The judge of ``reward=judge``; arguments as for ``Chat``, ``JudgeReward``, ``JudgeOracle``.

    Raises:
        Refusal: an unknown mode, no ``httpx``, or an argument out of range.
    """
    if mode not in ("pairwise", "pointwise"):
        raise Refusal(f"reward.mode must be pairwise or pointwise, got {mode!r}")
    chat = Chat(
        url=url,
        model=model,
        version=str(version),
        temperature=temperature,
        max_tokens=max_tokens,
        cache=cache,
        concurrency=concurrency,
        timeout=timeout,
        retries=retries,
        backoff=backoff,
        api_key_env=api_key_env,
    )
    if mode == "pointwise":
        return JudgeReward(
            chat, instructions=instructions or POINTWISE, marks=marks, unclear=unclear
        )
    return JudgeOracle(
        chat,
        instructions=instructions or PAIRWISE,
        positions=positions,
        opponents=opponents,
        unclear=unclear,
    )


def _first_comes_first(prompt: Prompt, first: Response, second: Response) -> bool:
    """A fair coin that depends on what is asked alone; the other way round for the turned pair."""
    low, high = sorted([first.text, second.text])
    coin = coordinate_seed("judge", prompt.id, low, high) & 1
    return bool(coin) == (first.text == low)
