"""Rows that can be read but not used: counted by reason, listed in the log, limited in number."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from lit_pref.types import Refusal

__all__ = ["Drops", "Unusable"]

log = logging.getLogger(__name__)

_LINES_SHOWN = 5


class Unusable(Exception):
    """A row that can be read but not used; the message is the reason it is counted under."""


@dataclass(kw_only=True, slots=True)
class Drops:
    """What became of the rows of one file.

    Attributes:
        file: the file, as the user named it.
        rows: rows read so far.
        lines: for each reason, the lines that were dropped.
        cut: responses cut at the length limit (used, but without their end).
    """

    file: str
    rows: int = 0
    lines: dict[str, list[int]] = field(default_factory=dict)
    cut: int = 0

    def add(self, reason: str, line: int) -> None:
        self.lines.setdefault(reason, []).append(line)

    @property
    def dropped(self) -> int:
        return sum(map(len, self.lines.values()))

    @property
    def counts(self) -> dict[str, int]:
        """Number of dropped rows by reason, and of cut responses, for the log."""
        counts = {reason: len(lines) for reason, lines in self.lines.items()}
        return {**counts, "response cut": self.cut} if self.cut else counts

    def close(self, max_dropped: float) -> None:
        """Log what was dropped, and refuse the file when that was too much.

        Args:
            max_dropped: largest share of rows, in [0, 1], that may be dropped.

        Raises:
            Refusal: the file has no rows, too many were dropped, or none is left.
        """
        if self.rows == 0:
            raise Refusal(
                f"{self.file} has no rows. Expected one JSON object a line; write at least one "
                "row, or name another file."
            )
        if self.cut:
            log.warning("%s: %d responses cut at the length limit.", self.file, self.cut)
        if not self.lines:
            return
        summary = f"{self.dropped} of {self.rows} rows cannot be used: {self._listing()}"
        if self.dropped == self.rows or self.dropped / self.rows > max_dropped:
            line, reason = min((lines[0], reason) for reason, lines in self.lines.items())
            raise Refusal(
                f"{self.file}, line {line}: {reason}. {summary}. Expected at most "
                f"{max_dropped:.0%} unusable rows and at least one usable; correct or remove "
                "them, or raise task.max_dropped."
            )
        log.warning("%s: %s. They are left out.", self.file, summary)

    def _listing(self) -> str:
        def one(reason: str, lines: list[int]) -> str:
            shown = ", ".join(map(str, lines[:_LINES_SHOWN]))
            more = ", ..." if len(lines) > _LINES_SHOWN else ""
            return f"{len(lines)} x {reason} (line {shown}{more})"

        return "; ".join(one(reason, lines) for reason, lines in self.lines.items())
