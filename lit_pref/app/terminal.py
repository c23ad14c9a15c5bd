"""What the commands show while they work and when they end."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm.auto import tqdm

__all__ = ["Bars", "lines"]

log = logging.getLogger(__name__)


class Bars:
    """Progress bars of sampling and scoring; log lines where there is no terminal.

    Args:
        what: whose responses.
        total: responses in all, over the calls that report here; None: each call's own.
        every_seconds: without a terminal, time between two log lines.
    """

    def __init__(self, what: str, *, total: int | None = None, every_seconds: float = 10.0) -> None:
        self.what, self.total, self.every_seconds = what, total, every_seconds
        self.before = 0
        self._bar: Any = None
        self._stage = ""
        self._spoke = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        total = self.total or total
        done += self.before
        if not sys.stderr.isatty():
            if time.monotonic() - self._spoke >= self.every_seconds:
                self._spoke = time.monotonic()
                log.info("%s: %s %d of %d responses", self.what, stage, done, total)
            return
        if self._stage != stage or self._bar is None:
            self.close()
            self._bar = tqdm(total=total, desc=f"{self.what}: {stage}", unit="response")
            self._stage = stage
        self._bar.n = done
        self._bar.refresh()

    def close(self) -> None:
        """Leave the last bar on the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def lines(rows: Sequence[tuple[str, str]]) -> str:
    """Two aligned columns between rules."""
    label = max(len(name) for name, _ in rows)
    body = [f"{name:<{label}}  {value}" for name, value in rows]
    rule = "-" * min(80, max(map(len, body)))
    return "\n".join([rule, *body, rule])
