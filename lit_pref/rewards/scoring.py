"""Scoring beside sampling: finished groups are scored while others are still sampled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from types import TracebackType
from typing import Any

import torch

from lit_pref.rewards.background import cancel_all
from lit_pref.rewards.base import checked_scores
from lit_pref.rewards.comparing import (
    checked_answers,
    checked_comparisons,
    is_oracle,
    win_shares,
)
from lit_pref.types import (
    Comparison,
    Group,
    PreferenceOracle,
    Prompt,
    Refusal,
    RewardSource,
)

__all__ = [
    "Guarded",
    "Scoring",
    "assess",
    "calls_at_once",
    "check_prompts",
    "groups_at_once",
    "merged_counts",
]


def calls_at_once(source: Any) -> int:
    """How many calls of a source may run at the same time."""
    return max(1, int(getattr(source, "concurrency", 1)))


def groups_at_once(source: Any) -> int:
    """How many groups a source wants in one call."""
    return max(1, int(getattr(source, "groups_at_once", 1)))


def check_prompts(source: Any, prompts: Sequence[Prompt]) -> None:
    """Whether a source, and those that it is made of, can score responses to these prompts.

    Raises:
        Refusal: it cannot; the message says why.
    """
    for part in (*getattr(source, "sources", ()), getattr(source, "source", None)):
        if part is not None and not isinstance(part, str):
            check_prompts(part, prompts)
    if callable(check := getattr(source, "check_prompts", None)):
        check(prompts)


def merged_counts(sources: Sequence[Any]) -> dict[str, float]:
    """The counts of some sources (requests, retries, ...), summed by name."""
    out: dict[str, float] = {}
    for source in sources:
        if callable(counts := getattr(source, "counts", None)):
            for name, value in counts().items():
                out[name] = out.get(name, 0) + value
    return out


def assess(source: RewardSource | PreferenceOracle, groups: Sequence[Group]) -> None:
    """Write rewards (and an oracle's comparisons) into groups.

    Raises:
        RewardError: the source failed; nothing was written then.
    """
    label = f"{source.name}@{source.version}"
    if is_oracle(source):
        compared = checked_comparisons(source, groups)
        for group, comparisons in zip(groups, compared, strict=True):
            group.comparisons = comparisons
            shares = win_shares(len(group.responses), comparisons)
            for response, share in zip(group.responses, shares, strict=True):
                response.reward = share
            group.reward_source = label
        return
    scores = iter(checked_scores(source, groups))
    for group in groups:
        for response in group.responses:
            response.reward = next(scores)
        group.reward_source = label


def _begin(gpu: int | None) -> None:
    """A thread begins on the first GPU of the machine, whichever its process has."""
    if gpu is not None:
        torch.cuda.set_device(gpu)


class Scoring:
    """Scores groups in threads, in calls that depend on the order of the groups alone.

    ::

        with Scoring(reward) as scoring:
            for group in sampled:
                scoring.add(group)
            scoring.finish()

    Calls hold ``groups_at_once`` consecutive groups each, whatever the timing, so that a resumed
    run makes the same ones; ``concurrency`` of them run at the same time. When one fails, the next
    ``add`` raises its error: sampling stops at once. Leaving the block by an exception gives up all
    calls that wait or run.

    Args:
        source: the reward or oracle.

    Raises:
        Refusal: an oracle is given a group with a single response.
    """

    def __init__(self, source: RewardSource | PreferenceOracle) -> None:
        self.source = source
        self._size = groups_at_once(source)
        self._waiting: list[Group] = []
        self._calls: list[tuple[Future[None], int]] = []
        gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self._pool = ThreadPoolExecutor(
            calls_at_once(source), thread_name_prefix="reward", initializer=_begin, initargs=(gpu,)
        )

    def __enter__(self) -> Scoring:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            cancel_all()
        self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def add(self, group: Group) -> None:
        """Score this group, now or with the next ones.

        Raises:
            RewardError: an earlier group could not be scored.
        """
        if is_oracle(self.source) and len(group.responses) < 2:
            raise Refusal(
                f"reward {self.source.name!r} compares the responses to a prompt with each other, "
                f"and there is {len(group.responses)}; ask for 2 or more responses per prompt"
            )
        self._raise_failure()
        self._waiting.append(group)
        if len(self._waiting) >= self._size:
            self._submit()

    def finish(self, progress: Callable[[int], None] = lambda responses: None) -> None:
        """Wait until everything is scored.

        Args:
            progress: told how many responses are scored.

        Raises:
            RewardError: a group could not be scored.
        """
        self._submit()
        responses, done = dict(self._calls), 0
        for call in as_completed(responses):
            call.result()
            done += responses[call]
            progress(done)

    def _submit(self) -> None:
        if self._waiting:
            part, self._waiting = self._waiting, []
            responses = sum(len(g.responses) for g in part)
            self._calls.append((self._pool.submit(assess, self.source, part), responses))

    def _raise_failure(self) -> None:
        for call, _ in self._calls:
            if call.done():
                call.result()


class Guarded:
    """A source inside another: no more calls of it at once than it allows.

    Args:
        source: the inner reward or oracle.
    """

    def __init__(self, source: RewardSource | PreferenceOracle) -> None:
        self.source = source
        self._limit = threading.Semaphore(calls_at_once(source))

    def scores(self, groups: Sequence[Group]) -> list[float]:
        """Checked scores, or win shares of an oracle."""
        with self._limit:
            return checked_scores(self.source, groups)

    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        """Checked answers of an oracle."""
        assert is_oracle(self.source)
        with self._limit:
            return checked_answers(self.source, comparisons)
