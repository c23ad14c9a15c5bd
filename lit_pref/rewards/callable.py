"""The user's own Python function as a reward, or as an oracle that compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lit_pref.rewards.base import at_least_one, settings_version
from lit_pref.rewards.function import Takes, UserFunction, resolve_function
from lit_pref.types import Comparison, Group, Prompt

__all__ = ["CallableOracle", "CallableReward", "resolve_function"]


class CallableReward:
    """Scores with ``function(prompts, responses, **columns) -> list of numbers``.

    All arguments are lists with one entry per response: ``prompts`` (text or chat messages),
    ``responses`` (text), and each further column of the prompts' rows under its name (``None``
    where a row lacks it). A function without ``**kwargs`` gets only the columns it names::

        def exact(prompts, responses, answer):
            return [float(r.strip() == a) for r, a in zip(responses, answer)]

    With ``takes="one"`` it is ``function(prompt, response, **columns) -> number``. It may be async;
    then up to ``concurrency`` calls are awaited at the same time on one event loop, which is the
    same for all calls of the process.

    The version is a digest of the function's source, so it changes when the function does.

    Args:
        function: the function, or its dotted path (``my_package.rewards.exact``).
        name: name in logs and provenance; by default the function's own.
        takes: ``batch`` (lists) or ``one`` (a single response).
        concurrency: calls at the same time; None: 1 for a plain function, 16 for an async one.
        groups_at_once: prompts (with all their responses) in one call.

    Raises:
        Refusal: the path does not lead to a function, or an argument is out of range.
    """

    def __init__(
        self,
        function: str | Callable[..., Any],
        *,
        name: str | None = None,
        takes: Takes = "batch",
        concurrency: int | None = None,
        groups_at_once: int = 1,
    ) -> None:
        self._call = UserFunction(function, leading=2, takes=takes, concurrency=concurrency)
        self.function = self._call.function
        self.concurrency = self._call.concurrency
        self.groups_at_once = at_least_one("groups_at_once", groups_at_once)
        self.name = name or self._call.label
        self.version = settings_version(function=self._call.label, source=self._call.source)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Whether the prompts have the columns that the function asks for.

        Raises:
            Refusal: an argument without a default that is a column of no prompt.
        """
        self._call.check_prompts(prompts)

    def score(self, groups: Sequence[Group]) -> list[float]:
        """What the function returns, as a list; ``checked_scores`` checks it.

        Raises:
            TypeError: the function returned something that is not a sequence.
        """
        flat = [(group.prompt, r.text) for group in groups for r in group.responses]
        return self._call([p for p, _ in flat], [r for _, r in flat])


class CallableOracle:
    """Compares with ``function(prompts, first, second, **columns) -> list of probabilities``.

    Each answer is the probability in [0, 1] that the first response is better; ``True`` and
    ``False`` will do, 0.5 is a tie. Arguments, ``takes`` and async as for ``CallableReward``.

    Args:
        function: the function, or its dotted path.
        name: name in logs and provenance; by default the function's own.
        takes: ``batch`` (lists) or ``one`` (a single comparison).
        concurrency: calls at the same time; None: 1 for a plain function, 16 for an async one.
        groups_at_once: prompts (with all their responses) in one call.
        opponents: each response is compared with the next so many in a circle; None: with all.

    Raises:
        Refusal: the path does not lead to a function, or an argument is out of range.
    """

    def __init__(
        self,
        function: str | Callable[..., Any],
        *,
        name: str | None = None,
        takes: Takes = "batch",
        concurrency: int | None = None,
        groups_at_once: int = 1,
        opponents: int | None = None,
    ) -> None:
        self._call = UserFunction(function, leading=3, takes=takes, concurrency=concurrency)
        self.concurrency = self._call.concurrency
        self.groups_at_once = at_least_one("groups_at_once", groups_at_once)
        self.opponents = opponents if opponents is None else at_least_one("opponents", opponents)
        self.name = name or self._call.label
        self.version = settings_version(
            function=self._call.label, source=self._call.source, opponents=opponents
        )

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Whether the prompts have the columns that the function asks for.

        Raises:
            Refusal: an argument without a default that is a column of no prompt.
        """
        self._call.check_prompts(prompts)

    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        """What the function returns, as a list; ``checked_comparisons`` checks it.

        Raises:
            TypeError: the function returned something that is not a sequence.
        """
        return self._call(
            [c.group.prompt for c in comparisons],
            [c.group.responses[c.first].text for c in comparisons],
            [c.group.responses[c.second].text for c in comparisons],
        )
