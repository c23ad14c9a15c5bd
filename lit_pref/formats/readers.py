"""From a file to rows: one object a row, each with its file and line.

A further file format is one more ``Reader`` in ``READERS``; nothing else changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lit_pref.types import Refusal

__all__ = ["READERS", "Reader", "Row", "read_rows"]

_BOM = b"\xef\xbb\xbf"
_EXAMPLE = 'one JSON object a line, such as {"prompt": "..."}'

# What a file that is no text betrays itself by, and what to do about it.
_SIGNATURES = (
    (b"\x1f\x8b", "gzip data", "unpack it first (gunzip)"),
    (b"PK\x03\x04", "a zip archive", "unpack it first (unzip)"),
    (b"PAR1", "a Parquet file", "convert it to JSONL"),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
    (b"\x80", "a pickle or other binary data", "convert it to JSONL; pickles are never opened"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a file.

    Attributes:
        file: the file, as the user named it.
        line: line in the file, counted from 1.
        data: the row's columns.
        fault: why the row cannot be used although it could be read, if so.
    """

    file: str
    line: int
    data: dict[str, Any]
    fault: str | None = None

    @property
    def place(self) -> str:
        return f"{self.file}, line {self.line}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """How one file format is recognised and read.

    Attributes:
        recognises: from the path and the first bytes, whether the file is of this format.
        read: from the open file and its name, the rows, streamed.
    """

    recognises: Callable[[Path, bytes], bool]
    read: Callable[[BinaryIO, str], Iterator[Row]]


def read_rows(path: str | Path, *, name: str | None = None) -> Iterator[Row]:
    """Stream the rows of a file.

    Args:
        path: the file.
        name: what to call it in messages and records; the path as given by default.

    Raises:
        Refusal: the file is missing, cannot be opened, or is not what it claims to be.
    """
    name = str(path) if name is None else name
    path = Path(path)
    try:
        if path.is_dir():
            raise Refusal(f"{name} is a folder. Expected a file with {_EXAMPLE}.")
        with path.open("rb") as file:
            head = file.read(16)
            file.seek(0)
            reader = next(r for r in READERS if r.recognises(path, head))
            yield from reader.read(file, name)
    except FileNotFoundError:
        raise Refusal(
            f"{name} does not exist. Expected a file with {_EXAMPLE}; check the path (it is "
            "relative to the folder the command is started from)."
        ) from None
    except (OSError, ValueError) as error:
        if isinstance(error, Refusal):
            raise
        raise Refusal(f"{name} cannot be read: {error}. Check the path and its rights.") from None


def _read_jsonl(file: BinaryIO, name: str) -> Iterator[Row]:
    """JSON Lines in UTF-8, with or without a byte-order mark; blank lines are skipped."""
    for number, raw in enumerate(file, start=1):
        if number == 1:
            _check_signature(raw, name)
            raw = raw.removeprefix(_BOM)
        if not raw.strip():
            continue
        data = _parse_line(raw, f"{name}, line {number}")
        fault = "text is not valid Unicode" if b"\\u" in raw and _has_surrogate(data) else None
        yield Row(file=name, line=number, data=data, fault=fault)


def _check_signature(head: bytes, name: str) -> None:
    for signature, kind, remedy in _SIGNATURES:
        if head.startswith(signature):
            raise Refusal(f"{name} is {kind}. Expected UTF-8 text with {_EXAMPLE}: {remedy}.")


def _parse_line(raw: bytes, place: str) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(
            f"{place}: byte {raw[error.start]:#04x} at position {error.start} is not UTF-8. "
            "Expected UTF-8 text; save the file as UTF-8."
        ) from None
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise Refusal(
            f"{place}: not JSON ({error.msg} at column {error.colno}). Expected {_EXAMPLE}; got "
            f"{_shorten(text)}{_array_hint(text)}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise Refusal(
            f"{place}: cannot be read as JSON ({error or 'nested too deeply'}). Expected "
            f"{_EXAMPLE}; correct or remove the line."
        ) from None
    if not isinstance(data, dict):
        raise Refusal(
            f"{place}: the row is not an object. Expected {_EXAMPLE}; got "
            f"{_shorten(text)}{_array_hint(text)}"
        )
    return data


def _array_hint(text: str) -> str:
    if text.lstrip().startswith("["):
        return ". The file looks like a JSON array: write each of its objects on a line of its own."
    return ". Correct or remove the line."


def _shorten(text: str, limit: int = 60) -> str:
    text = text.strip()
    return ascii(text if len(text) <= limit else text[:limit] + "...")


def _has_surrogate(data: Any) -> bool:
    """Half of a surrogate pair, which JSON can spell but no encoding can write."""
    try:
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


READERS: tuple[Reader, ...] = (
    # Last, because it takes every file: JSONL has no signature and many suffixes.
    Reader(recognises=lambda path, head: True, read=_read_jsonl),
)
"""Tried in order; the first that recognises a file reads it."""
