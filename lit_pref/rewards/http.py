"""JSON over HTTP with time limits, repeated tries, a limit on calls at the same time, and a key.

Needs ``httpx`` (extra ``remote``).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from lit_pref.rewards.base import at_least_one
from lit_pref.rewards.cache import DiskCache
from lit_pref.types import Refusal

__all__ = ["BadReply", "CallFailed", "JsonClient", "http_counts"]

T = TypeVar("T")

_LONGEST_PAUSE = 60.0
_AGAIN = (408, 409, 425, 429)
"""Statuses below 500 that may be another at the next try."""


class BadReply(ValueError):
    """A reply that is not what was asked for; another try may be right."""


class CallFailed(RuntimeError):
    """No usable reply after all tries; the message never holds the key.

    Attributes:
        bad_reply: the server answered, and what it said could not be used.
    """

    def __init__(self, message: str, *, bad_reply: bool = False) -> None:
        super().__init__(message)
        self.bad_reply = bad_reply


class JsonClient:
    """Posts JSON and reads JSON.

    Args:
        url: where to.
        timeout: seconds that one try may take, connecting included.
        retries: further tries after one that failed: no connection, cut, too slow, status 5xx,
            408, 409, 425, 429, or a reply that cannot be read.
        backoff: seconds before the second try; doubled for each further one, at most 60, and
            spread by half so that many calls do not return together. A server's ``Retry-After``
            counts where it is longer.
        concurrency: calls at the same time.
        api_key_env: name of the environment variable that holds the key (sent as a bearer token).
            The key itself is never logged, shown or written.

    Raises:
        Refusal: no ``httpx``, no such variable, or an argument out of range.
    """

    def __init__(
        self,
        *,
        url: str,
        timeout: float,
        retries: int,
        backoff: float,
        concurrency: int,
        api_key_env: str | None,
    ) -> None:
        parts = urlsplit(str(url))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Refusal(f"reward.url must be like http://host:port/path, got {url!r}")
        if parts.username or parts.password:
            raise Refusal(
                "reward.url holds a user name or password, which would be written into files; put "
                "the key into an environment variable and name it with reward.api_key_env"
            )
        if not 0 < timeout < math.inf:
            raise Refusal(f"reward.timeout must be a number of seconds above 0, got {timeout}")
        if not isinstance(retries, int) or retries < 0:
            raise Refusal(f"reward.retries must be a whole number from 0, got {retries!r}")
        if not 0 <= backoff < math.inf:
            raise Refusal(f"reward.backoff must be a number of seconds from 0, got {backoff}")
        self.url, self.timeout, self.retries, self.backoff = url, timeout, retries, backoff
        self.concurrency = at_least_one("concurrency", concurrency)
        self.limit = asyncio.Semaphore(self.concurrency)
        self.requests = self.repeated = 0
        self._key = _key(api_key_env)
        self._httpx = _import_httpx()
        self._client: Any = None

    async def post(self, body: dict[str, Any], read: Callable[[Any], T]) -> T:
        """Send ``body``; what ``read`` makes of the reply.

        Args:
            body: a JSON object.
            read: from the reply's JSON to the result; raises ``BadReply`` if it cannot.

        Raises:
            CallFailed: no try gave a usable reply.
        """
        for attempt in range(self.retries + 1):
            self.requests += 1
            pause = self._pause(attempt, body)
            try:
                return await asyncio.wait_for(self._once(body, read), self.timeout)
            except _Retry as problem:
                error: Exception = problem
                pause = max(pause, problem.after)
            except (asyncio.TimeoutError, TimeoutError):
                error = TimeoutError(f"no reply within {self.timeout:g} s")
            except self._httpx.RequestError as problem:
                error = ConnectionError(f"{type(problem).__name__}: {problem}")
            except BadReply as problem:
                error = problem
            if attempt < self.retries:
                self.repeated += 1
                await asyncio.sleep(pause)
        tries = f"{self.retries + 1} tries" if self.retries else "1 try"
        raise CallFailed(
            self._clean(f"{self.url}: {error} ({tries})"), bad_reply=isinstance(error, BadReply)
        )

    async def _once(self, body: dict[str, Any], read: Callable[[Any], T]) -> T:
        if self._client is None:  # here, because it belongs to the loop
            limits = self._httpx.Limits(
                max_connections=self.concurrency, max_keepalive_connections=self.concurrency
            )
            headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
            self._client = self._httpx.AsyncClient(limits=limits, timeout=None, headers=headers)
        reply = await self._client.post(self.url, json=body)
        if reply.status_code != 200:
            what = f"status {reply.status_code}: {_excerpt(reply.text)}"
            if reply.status_code >= 500 or reply.status_code in _AGAIN:
                raise _Retry(what, _seconds(reply.headers.get("retry-after")))
            raise CallFailed(self._clean(f"{self.url}: {what}"))
        try:
            value = json.loads(reply.content)
        except ValueError as error:
            raise BadReply(f"expected JSON, got {_excerpt(reply.text)}") from error
        return read(value)

    def _pause(self, attempt: int, body: dict[str, Any]) -> float:
        digest = hashlib.sha256(f"{attempt}{json.dumps(body, default=repr)}".encode()).digest()
        spread = 0.75 + 0.5 * digest[0] / 255  # not random: nothing may touch a generator
        return min(self.backoff * 2**attempt, _LONGEST_PAUSE) * spread

    def _clean(self, text: str) -> str:
        """Without the key, which a server may have sent back."""
        return text.replace(self._key, "***") if self._key else text


def http_counts(client: JsonClient, cache: DiskCache) -> dict[str, float]:
    """Counts of a remote source, for the log."""
    return {
        "reward/requests": client.requests,
        "reward/retries": client.repeated,
        "reward/cache_hits": cache.hits,
        "reward/cache_damaged": cache.damaged,
    }


class _Retry(Exception):
    def __init__(self, what: str, after: float) -> None:
        super().__init__(what)
        self.after = after


def _seconds(header: str | None) -> float:
    """``Retry-After`` in seconds; its other form, a date, is left to the backoff."""
    try:
        return min(max(float(header or 0), 0.0), _LONGEST_PAUSE)
    except ValueError:
        return 0.0


def _excerpt(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 160 else text[:157] + "...")


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable):  # never show it: it may be the key itself
        raise Refusal(
            "reward.api_key_env must be the NAME of an environment variable, in capital letters, "
            "such as OPENAI_API_KEY. What was given is none; if it was the key itself, remove it "
            "from config.yaml and .hydra/ of this run directory"
        )
    key = os.environ.get(variable, "").strip()
    if not key:
        raise Refusal(f"the environment variable {variable} (reward.api_key_env) is not set")
    return key


def _import_httpx() -> Any:
    try:
        import httpx
    except ModuleNotFoundError as error:
        raise Refusal(
            'reward=remote and reward=judge need httpx; install it with: pip install -e ".[remote]"'
        ) from error
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request otherwise
    return httpx
