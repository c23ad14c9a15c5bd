"""Rows of text files: JSON Lines, a JSON list, CSV. All are streamed; UTF-8 alone is read."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from lit_pref.formats.rows import NOT_UNICODE, Row, describe, has_surrogate, shorten
from lit_pref.types import Refusal

__all__ = ["EXAMPLE", "MAX_ROW_BYTES", "read_csv", "read_json_list", "read_jsonl"]

BOM = b"\xef\xbb\xbf"
EXAMPLE = 'one JSON object a line, such as {"prompt": "..."}'
MAX_ROW_BYTES = 64 * 2**20
"""Longest row that is read; more is a file without line ends or a decompression bomb."""

_CHUNK = 2**16


def read_jsonl(file: BinaryIO, name: str) -> Iterator[Row]:
    """JSON Lines, with or without a byte-order mark; blank lines are skipped."""
    for number, raw in _lines(file, name):
        if not raw.strip():
            continue
        data = _parse_line(_decode(raw, name, number), f"{name}, line {number}")
        fault = NOT_UNICODE if b"\\u" in raw and has_surrogate(data) else None
        yield Row(file=name, number=number, line=number, data=data, fault=fault)


def read_csv(file: BinaryIO, name: str, *, delimiter: str) -> Iterator[Row]:
    """CSV with a header. A cell that spans lines belongs to the row where it begins."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    lines = (_decode(raw, name, number) for number, raw in _lines(file, name))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            if header is None:
                header = _check_header(fields, name)
            elif fields:
                if len(fields) != len(header):
                    raise Refusal(
                        f"{name}, line {line}: {len(fields)} cells, but the header has "
                        f"{len(header)} columns. Expected as many cells as columns; quote cells "
                        f"that contain {delimiter!r} or line ends."
                    )
                data: dict[str, Any] = dict(zip(header, fields, strict=True))
                yield Row(file=name, number=line, line=line, data=data, textual=True)
            line = reader.line_num + 1
    except csv.Error as error:
        raise Refusal(
            f"{name}, line {line}: not CSV ({error}). Expected a header and rows with cells "
            f"between {delimiter!r}, quoted by double quotes; correct the row."
        ) from None


def read_json_list(file: BinaryIO, name: str) -> Iterator[Row]:
    """The objects of one JSON list, one after the other, without holding the whole list."""
    text = _Text(file, name)
    decoder = json.JSONDecoder()
    text.skip_space()
    text.take("[")
    number = 0
    while text.skip_space() != "]":
        if number:
            text.take(",")
            text.skip_space()
        number += 1
        line = text.line
        place = f"{name}, row {number} (line {line})"
        data, raw = text.value(decoder, place)
        if not isinstance(data, dict):
            raise Refusal(
                f"{place} is {describe(data)}, not an object. Expected a list of objects such as "
                f'[{{"prompt": "..."}}, ...]; got {shorten(raw)}.'
            )
        fault = NOT_UNICODE if "\\u" in raw and has_surrogate(data) else None
        yield Row(file=name, number=number, line=line, data=data, fault=fault)
    text.take("]")
    if text.skip_space():
        raise text.refusal("there is more after the end of the list")


class _Text:
    """A window on a text that is decoded while it is read.

    Args:
        file: the bytes.
        name: the file's name in messages.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file, self.name = file, name
        self.line = 1
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self._text, self._at, self._done = "", 0, False
        self._read_lines = 1
        self.more()
        if self._text.startswith("\ufeff"):
            self._at = 1

    def more(self) -> bool:
        """Read on; False at the end of the file."""
        if self._done:
            return False
        self._text, self._at = self._text[self._at :], 0
        raw = self.file.read(max(_CHUNK, len(self._text)))
        self._done = not raw
        try:
            self._text += self._decoder.decode(raw, final=self._done)
        except UnicodeDecodeError as error:
            line = self._read_lines + error.object[: error.start].count(b"\n")
            raise Refusal(_not_utf8(self.name, line, error)) from None
        self._read_lines += raw.count(b"\n")
        return True

    def skip_space(self) -> str:
        """Move to the next character that is no space; empty at the end of the file."""
        while True:
            while self._at < len(self._text):
                character = self._text[self._at]
                if character not in " \t\r\n":
                    return character
                self.line += character == "\n"
                self._at += 1
            if not self.more():
                return ""

    def take(self, character: str) -> None:
        """Move over this character, which must come next."""
        found = self.skip_space()
        if found != character:
            raise self.refusal(f"expected {character!r}, got {found!a}" if found else "it ends")
        self._at += 1

    def value(self, decoder: json.JSONDecoder, place: str) -> tuple[Any, str]:
        """The next JSON value and its text."""
        while True:
            try:
                data, end = decoder.raw_decode(self._text, self._at)
                break
            except json.JSONDecodeError as error:
                # What is cut by the window's end fails there, or is a string without end.
                cut = "Unterminated" in error.msg or error.pos > len(self._text) - 24
                if len(self._text) - self._at > MAX_ROW_BYTES:
                    raise Refusal(_too_long(place)) from None
                if not cut or not self.more():
                    self.line += self._text.count("\n", self._at, error.pos)
                    raise self.refusal(error.msg) from None
            except (ValueError, RecursionError) as error:
                raise Refusal(_unreadable(place, error)) from None
        raw = self._text[self._at : end]
        self.line += raw.count("\n")
        self._at = end
        return data, raw

    def refusal(self, problem: str) -> Refusal:
        return Refusal(
            f"{self.name}, line {self.line}: not a JSON list ({problem}). Expected a list of "
            'objects such as [{"prompt": "..."}, ...]; correct the file.'
        )


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    number = 0
    while raw := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(raw) > MAX_ROW_BYTES:
            raise Refusal(_too_long(f"{name}, line {number}"))
        yield number, raw.removeprefix(BOM) if number == 1 else raw


def _decode(raw: bytes, name: str, number: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(_not_utf8(name, number, error)) from None


def _not_utf8(name: str, line: int, error: UnicodeDecodeError) -> str:
    raw = error.object
    position = error.start - (raw.rfind(b"\n", 0, error.start) + 1)
    return (
        f"{name}, line {line}: byte {raw[error.start]:#04x} at position {position} is not UTF-8. "
        "Expected UTF-8 text; save the file as UTF-8."
    )


def _too_long(place: str) -> str:
    return (
        f"{place} is longer than {MAX_ROW_BYTES // 2**20} MiB. Expected shorter rows; check that "
        "every row ends where it should, or remove this one."
    )


def _unreadable(place: str, error: Exception) -> str:
    return (
        f"{place}: cannot be read as JSON ({error or 'nested too deeply'}). Expected "
        f"{EXAMPLE}; correct or remove it."
    )


def _parse_line(text: str, place: str) -> dict[str, Any]:
    text = text.rstrip()  # columns are those of this line
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise Refusal(
            f"{place}: not JSON ({error.msg} at column {error.colno}). Expected {EXAMPLE}; got "
            f"{shorten(text)}{_list_hint(text)}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise Refusal(_unreadable(place, error)) from None
    if not isinstance(data, dict):
        raise Refusal(
            f"{place}: the row is not an object. Expected {EXAMPLE}; got "
            f"{shorten(text)}{_list_hint(text)}"
        )
    return data


def _list_hint(text: str) -> str:
    if text.lstrip().startswith("["):
        return (
            ". The file looks like a JSON array: name it .json, or write each of its objects on a "
            "line of its own."
        )
    if text.strip() == "{":
        return ". Write the whole object on one line, or a list of objects into a .json file."
    return ". Correct or remove the line."


def _check_header(header: list[str], name: str) -> list[str]:
    names = [column.strip() for column in header]
    twice = next((c for c in names if names.count(c) > 1), None)
    if twice is not None or not all(names):
        problem = f"names {twice!a} twice" if twice else "has a column without a name"
        raise Refusal(
            f"{name}, line 1: the header {problem}. Expected the names of the columns, such as "
            f"prompt,chosen,rejected; got {shorten(','.join(header))}."
        )
    return names
