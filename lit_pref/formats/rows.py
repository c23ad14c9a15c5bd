"""A row of a file, and how a value or a place is spelt in messages."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

__all__ = ["NOT_UNICODE", "Row", "describe", "has_surrogate", "nearest", "shorten"]

NOT_UNICODE = "text is not valid Unicode"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a file.

    Attributes:
        file: the file, as the user named it.
        number: what identifies the row: its line where a row is a line, else its number, from 1.
        data: the row's columns.
        line: the line that the row begins at, from 1; None where a file has no lines.
        textual: every value is a string (CSV), so that numbers and lists are spelt out.
        fault: why the row cannot be used although it could be read, if so.
    """

    file: str
    number: int
    data: dict[str, Any]
    line: int | None = None
    textual: bool = False
    fault: str | None = None

    @property
    def place(self) -> str:
        """File and line (or row), for messages."""
        if self.line == self.number:
            return f"{self.file}, line {self.line}"
        lines = "" if self.line is None else f" (line {self.line})"
        return f"{self.file}, row {self.number}{lines}"


def describe(value: Any) -> str:
    """A value by its JSON type, with the value itself where that is short."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    names = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def shorten(text: str, limit: int = 60) -> str:
    """A text as an ASCII literal, its beginning alone when it is long."""
    text = text.strip()
    return ascii(text if len(text) <= limit else text[:limit] + "...")


def nearest(name: str, known: Iterable[str]) -> str:
    """A phrase with the nearest known name, empty when none is near."""
    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def has_surrogate(data: Any) -> bool:
    """Half of a surrogate pair, which JSON can spell but no encoding can write."""
    try:
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
