"""Rows that can be read but not used: counted by reason, listed in the log, limited in number."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, Literal

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
        lines: for each reason, the lines (or numbers of the rows) that were dropped.
        changes: prompts and responses that are used, but not as they were written, by name:
            ``prompt cut`` and ``response cut`` (at the length limit), and so on.
        unit: whether rows are named by ``line`` or by their number (``row``).
    """

    file: str
    rows: int = 0
    lines: dict[str, list[int]] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    unit: Literal["line", "row"] = "line"

    def add(self, reason: str, line: int) -> None:
        """Count a row that is left out."""
        self.lines.setdefault(reason, []).append(line)

    def change(self, name: str, count: int = 1) -> None:
        """Count prompts or responses that are used, but not as they were written."""
        if count:
            self.changes[name] = self.changes.get(name, 0) + count

    @property
    def dropped(self) -> int:
        return sum(map(len, self.lines.values()))

    @property
    def counts(self) -> dict[str, int]:
        """Number of dropped rows by reason, then of changed texts, for the log."""
        return {**{reason: len(lines) for reason, lines in self.lines.items()}, **self.changes}

    def close(self, max_dropped: float) -> None:
        """Log what was dropped, and refuse the file when that was too much.

        Args:
            max_dropped: largest share of rows, in [0, 1], that may be dropped.

        Raises:
            Refusal: the file has no rows, too many were dropped, or none is left.
        """
        if self.rows == 0:
            raise Refusal(
                f"{self.file} has no rows. Expected at least one, such as the line "
                '{"prompt": "..."}; write one, or name another file.'
            )
        for name, count in self.changes.items():
            log.warning("%s: %d x %s.", self.file, count, name)
        if not self.lines:
            return
        summary = f"{self.dropped} of {self.rows} rows cannot be used: {self._listing()}"
        if self.dropped == self.rows or self.dropped / self.rows > max_dropped:
            line, reason = min((lines[0], reason) for reason, lines in self.lines.items())
            raise Refusal(
                f"{self.file}, {self.unit} {line}: {reason}. {summary}. Expected at most "
                f"{max_dropped:.0%} unusable rows and at least one usable; correct or remove "
                "them, or raise task.max_dropped. lit-pref inspect shows each of them."
            )
        log.warning("%s: %s. They are left out.", self.file, summary)

    def _listing(self) -> str:
        def one(reason: str, lines: list[int]) -> str:
            shown = ", ".join(map(str, lines[:_LINES_SHOWN]))
            more = ", ..." if len(lines) > _LINES_SHOWN else ""
            return f"{len(lines)} x {reason} ({self.unit} {shown}{more})"

        return "; ".join(one(reason, lines) for reason, lines in self.lines.items())

    def to_json(self) -> dict[str, Any]:
        """All but the file's name, as primitives."""
        return {"rows": self.rows, "lines": self.lines, "changes": self.changes, "unit": self.unit}

    @classmethod
    def from_json(cls, data: dict[str, Any], *, file: str) -> Drops:
        """Inverse of ``to_json``."""
        return cls(file=file, **data)
