"""From a row to a record: which column means what, and whether it holds what it should.

A further row format is one more ``Shape``; every shape ends in the same ``Record``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from lit_pref.formats.drops import Unusable
from lit_pref.formats.readers import Row
from lit_pref.types import Messages, Refusal

__all__ = ["PAIRS", "PROMPTS", "ROLES", "Answer", "Record", "Shape", "check_columns", "parse_row"]

ROLES = ("system", "developer", "user", "assistant", "tool")
_NAMES = ("prompt", "chosen", "rejected", "margin", "weight")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One given response, as the user wrote it, and what the data says of it."""

    text: str | Messages
    rank: int | None = None
    label: bool | None = None
    reward: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A row whose columns are understood but not tokenised yet."""

    prompt: str | Messages
    answers: tuple[Answer, ...] = ()
    margin: float | None = None
    weight: float = 1.0
    columns: dict[str, Any] = field(default_factory=dict)
    file: str
    line: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """One kind of row.

    Attributes:
        name: what the rows are called in messages.
        needs: columns without which a row is refused (our names).
        may: columns that are read when they are there (our names).
        answers: from a row's place and values, its given responses.
    """

    name: str
    needs: tuple[str, ...]
    may: tuple[str, ...] = ()
    answers: Callable[[str, Mapping[str, Any]], tuple[Answer, ...]] = lambda place, values: ()


def _pair_answers(place: str, values: Mapping[str, Any]) -> tuple[Answer, ...]:
    chosen = _response(place, "chosen", values["chosen"])
    rejected = _response(place, "rejected", values["rejected"])
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        if not _plain(response):
            raise Unusable(f"empty {name} response")
    if _plain(chosen) == _plain(rejected):
        raise Unusable("chosen equal to rejected")
    return Answer(text=chosen, rank=0), Answer(text=rejected, rank=1)


PROMPTS = Shape(name="prompts", needs=("prompt",))
PAIRS = Shape(
    name="preference pairs",
    needs=("prompt", "chosen", "rejected"),
    may=("margin", "weight"),
    answers=_pair_answers,
)


def check_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """The user's column names by ours, checked.

    Raises:
        Refusal: a name that is not ours, or a column name that is not a string.
    """
    for ours, theirs in (columns or {}).items():
        if ours not in _NAMES:
            raise Refusal(
                f"task.columns has the unknown name {ours!r}{_nearest(str(ours), _NAMES)}. "
                f"Expected names among {', '.join(_NAMES)}, each with the column of your file."
            )
        if not isinstance(theirs, str):
            raise Refusal(
                f"task.columns.{ours} is {_describe(theirs)}. Expected the name of a column of "
                f"your file, such as task.columns={{{ours}: my_{ours}}}."
            )
    return dict(columns or {})


def parse_row(row: Row, shape: Shape, columns: Mapping[str, str]) -> Record:
    """Understand a row's columns.

    Args:
        row: the row.
        shape: what kind of row it should be.
        columns: the user's column names by ours; names that are not in it are our own.

    Raises:
        Refusal: a column is missing or does not hold what it should.
        Unusable: the row is well-formed but says nothing that can be trained on.
    """
    if row.fault:
        raise Unusable(row.fault)
    values = {}
    for ours in shape.needs + shape.may:
        theirs = columns.get(ours, ours)
        if theirs in row.data:
            values[ours] = row.data[theirs]
        elif ours in shape.needs or ours in columns:
            raise Refusal(_missing(row, shape, ours, theirs))
    used = {columns.get(ours, ours) for ours in values}
    prompt = _prompt(row.place, values["prompt"])
    return Record(
        prompt=prompt,
        answers=shape.answers(row.place, values),
        margin=_number(row.place, "margin", values.get("margin")),
        weight=_weight(row.place, values.get("weight")),
        columns={key: value for key, value in row.data.items() if key not in used},
        file=row.file,
        line=row.line,
    )


def _missing(row: Row, shape: Shape, ours: str, theirs: str) -> str:
    have = list(row.data)
    listed = ", ".join(ascii(key) for key in have[:12]) or "none"
    mapped = f" (mapped from {ours!r} by task.columns)" if theirs != ours else ""
    close = get_close_matches(theirs.lower(), [key.lower() for key in have], n=1)
    guess = next((key for key in have if close and key.lower() == close[0]), None)
    meant = f" Did you mean {guess!a}?" if guess is not None else ""
    remedy = f"task.columns={{{ours}: {ascii(guess)[1:-1] if guess else 'your_column'}}}"
    return (
        f"{row.place}: the column {theirs!r}{mapped} is missing.{meant} Expected "
        f"{shape.name} with the columns {', '.join(shape.needs)}; got {listed}. Rename the "
        f"column, or map it with {remedy}."
    )


def _nearest(name: str, known: tuple[str, ...]) -> str:
    close = get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _prompt(place: str, value: Any) -> str | Messages:
    if isinstance(value, str):
        return value
    messages = _messages(place, "prompt", value)
    if messages and messages[-1]["role"] == "assistant":
        raise Refusal(
            f"{place}: the last message of 'prompt' has the role 'assistant'. Expected a prompt "
            "that ends with what is to be answered; move the answer to 'chosen' and 'rejected', "
            "or remove it."
        )
    return messages


def _response(place: str, column: str, value: Any) -> str | Messages:
    if isinstance(value, str):
        return value
    messages = _messages(place, column, value)
    if messages and [m["role"] for m in messages] != ["assistant"]:
        roles = ", ".join(m["role"] for m in messages[:8])
        raise Refusal(
            f"{place}: {column!r} has messages with the roles {roles}. Expected exactly one "
            "message, of the role assistant; put what comes before it into 'prompt'."
        )
    return messages


def _messages(place: str, column: str, value: Any) -> Messages:
    if not isinstance(value, list):
        raise Refusal(
            f"{place}: {column!r} is {_describe(value)}. Expected a string, or a list of "
            'messages such as [{"role": "user", "content": "..."}].'
        )
    return [_message(f"{place}: message {n} of {column!r}", m) for n, m in enumerate(value, 1)]


def _message(place: str, message: Any) -> dict[str, str]:
    if not isinstance(message, dict):
        raise Refusal(
            f"{place} is {_describe(message)}. Expected an object with 'role' and 'content'."
        )
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            got = _describe(message[key]) if key in message else "missing"
            raise Refusal(f"{place}: {key!r} is {got}. Expected a string.")
    if message["role"] not in ROLES:
        raise Refusal(
            f"{place} has the unknown role {message['role']!a}"
            f"{_nearest(message['role'], ROLES)}. Expected one of {', '.join(ROLES)}."
        )
    extra = [k for k, v in message.items() if k not in ("role", "content") and v is not None]
    if extra:
        raise Refusal(
            f"{place} has the further field {extra[0]!a}, which would be lost. Expected "
            "'role' and 'content' alone; write what matters into 'content'."
        )
    return {"role": message["role"], "content": message["content"]}


def _plain(text: str | Messages) -> str:
    return text if isinstance(text, str) else "".join(m["content"] for m in text)


def _number(place: str, column: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Refusal(f"{place}: {column!r} is {_describe(value)}. Expected a number.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise Unusable(f"non-finite {column}")
    return number


def _weight(place: str, value: Any) -> float:
    weight = _number(place, "weight", value)
    if weight is not None and weight < 0:
        raise Unusable("negative weight")
    return 1.0 if weight is None else weight


def _describe(value: Any) -> str:
    """A value by its JSON type, with the value itself where that is short."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    names = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")
