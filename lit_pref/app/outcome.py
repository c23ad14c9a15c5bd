"""How a run ended."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Outcome"]


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        status: ``finished``, ``interrupted``, ``failed`` or ``refused``.
        exit_code: 0 only when the run did what was asked.
        metric: the monitored metric at the end, for sweepers.
        reason: one sentence, for anything but ``finished``.
    """

    status: str
    exit_code: int
    metric: float | None = None
    reason: str = ""
