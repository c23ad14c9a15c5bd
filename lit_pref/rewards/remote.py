"""``reward=remote``: a service that scores prompts and responses over HTTP."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from lit_pref.rewards.background import run, run_limited
from lit_pref.rewards.base import at_least_one, finite_number, reward_error, shown
from lit_pref.rewards.cache import DiskCache
from lit_pref.rewards.http import BadReply, CallFailed, JsonClient, http_counts
from lit_pref.types import Group, Response

__all__ = ["RemoteReward"]


class RemoteReward:
    """Scores by ``POST url`` with ``{"prompts": [...], "responses": [...], "columns": {...}}``.

    The lists have one entry per response; ``columns`` has a list for each further field of the
    prompts' rows. The reply is ``{"scores": [...]}``, or the list alone: one finite number per
    response, in order.

    Requests of different prompts run at the same time, up to ``concurrency`` of them, while other
    responses are still sampled. Answers are kept on disk under everything that is sent, the url,
    ``name`` and ``version``.

    Args:
        url: the endpoint.
        name: name of the reward in logs and provenance.
        version: of the model behind the endpoint; change it when the model changes, because kept
            answers count for this version.
        batch_size: responses of one request at most.
        columns: whether further fields of the prompts' rows are sent.
        concurrency: see ``JsonClient``, as are timeout, retries, backoff, api_key_env.
        timeout: seconds of one try.
        retries: further tries.
        backoff: seconds before the second try.
        api_key_env: name of an environment variable with a key.
        cache: folder of kept answers; None keeps none.

    Raises:
        Refusal: no ``httpx``, or an argument out of range.
    """

    def __init__(
        self,
        *,
        url: str,
        name: str = "remote",
        version: str = "1",
        batch_size: int = 16,
        columns: bool = True,
        concurrency: int = 16,
        timeout: float = 60.0,
        retries: int = 4,
        backoff: float = 1.0,
        api_key_env: str | None = None,
        cache: str | None = None,
    ) -> None:
        self.client = JsonClient(
            url=url,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            concurrency=concurrency,
            api_key_env=api_key_env,
        )
        self.name, self.version = name, str(version)
        self.concurrency = self.client.concurrency
        self.batch_size = at_least_one("batch_size", batch_size)
        self.columns = columns
        self.cache = DiskCache(cache)

    def score(self, groups: Sequence[Group]) -> list[float]:
        """One number per response, groups in order, responses in order.

        Raises:
            RewardError: the service gave no usable answer; names the first response of the request.
        """
        return run(self._score([(g, r) for g in groups for r in g.responses]))

    def counts(self) -> dict[str, float]:
        """Since the start: requests, repeated tries, kept answers used and found damaged."""
        return http_counts(self.client, self.cache)

    async def _score(self, items: list[tuple[Group, Response]]) -> list[float]:
        keys = [self._key(group, response) for group, response in items]
        known = {key: self.cache.get(key) for key in dict.fromkeys(keys)}
        places = {key: n for n, key in reversed(list(enumerate(keys)))}  # first of equal ones
        missing = [key for key, score in known.items() if score is None]
        parts = [
            missing[start : start + self.batch_size]
            for start in range(0, len(missing), self.batch_size)
        ]
        calls = [
            functools.partial(self._request, [items[places[key]] for key in part]) for part in parts
        ]
        for part, scores in zip(parts, await run_limited(calls, self.client.limit), strict=True):
            for key, score in zip(part, scores, strict=True):
                known[key] = score
                self.cache.put(key, score)
        return [known[key] for key in keys]  # type: ignore[misc]

    def _key(self, group: Group, response: Response) -> str:
        return DiskCache.key(
            kind="remote",
            url=self.client.url,
            name=self.name,
            version=self.version,
            prompt=group.prompt.text,
            response=response.text,
            columns=group.prompt.columns if self.columns else None,
        )

    async def _request(self, items: list[tuple[Group, Response]]) -> list[float]:
        body: dict[str, Any] = {
            "prompts": [group.prompt.text for group, _ in items],
            "responses": [response.text for _, response in items],
        }
        if self.columns:
            names = dict.fromkeys(name for group, _ in items for name in group.prompt.columns)
            body["columns"] = {
                name: [group.prompt.columns.get(name) for group, _ in items] for name in names
            }
        try:
            return await self.client.post(body, functools.partial(_read, count=len(items)))
        except CallFailed as error:
            group, response = items[0]
            remark = f" (first of {len(items)} in the request)" if len(items) > 1 else ""
            culprit = Group(prompt=group.prompt, responses=[response])
            raise reward_error(self, str(error), culprit, remark) from None


def _read(reply: Any, *, count: int) -> list[float]:
    scores = reply.get("scores") if isinstance(reply, dict) else reply
    if not isinstance(scores, list):
        raise BadReply(f'expected {{"scores": [...]}}, got {shown(reply)}')
    if len(scores) != count:
        raise BadReply(f"expected {count} scores, one per response, got {len(scores)}")
    numbers = [None if isinstance(s, bool) else finite_number(s) for s in scores]
    for score, number in zip(scores, numbers, strict=True):
        if number is None:
            raise BadReply(f"expected finite numbers, got {shown(score)}")
    return numbers  # type: ignore[return-value]
