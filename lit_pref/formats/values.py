"""Single values of a row: numbers, truth values, token ids, and cells of CSV that spell them."""

from __future__ import annotations

import json
import math
from typing import Any

from lit_pref.formats.drops import Unusable
from lit_pref.formats.rows import NOT_UNICODE, describe, has_surrogate, shorten
from lit_pref.types import Refusal

__all__ = ["number", "numbers", "spelt_out", "token_ids", "truth"]

_NUMBERS = ("margin", "weight", "reward", "chosen_reward", "rejected_reward")
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_TEXTS = ("prompt", "chosen", "rejected", "completion", "system", "input")


def number(place: str, column: str, value: Any) -> float | None:
    """A finite number, or None where there is none.

    Raises:
        Refusal: it is no number.
        Unusable: it is not finite.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Refusal(f"{place}: {column!r} is {describe(value)}. Expected a number.")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise Unusable(f"non-finite {column}")
    return result


def numbers(place: str, column: str, value: Any, count: int) -> list[float | None]:
    """As many numbers as there are responses; no list at all is as many Nones."""
    if value is None:
        return [None] * count
    if not isinstance(value, list):
        raise Refusal(f"{place}: {column!r} is {describe(value)}. Expected a list of numbers.")
    if len(value) != count:
        raise Refusal(
            f"{place}: {column!r} has {len(value)} entries. Expected {count}, one per response."
        )
    name = {"rewards": "reward", "ranks": "rank"}.get(column, column)
    return [number(place, name, v) for v in value]


def truth(place: str, column: str, value: Any) -> bool | None:
    """True or false (1 and 0 too), or None where there is neither."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        if isinstance(value, float) and math.isnan(value):
            raise Unusable(f"non-finite {column}")
        if value in (0, 1):
            return bool(value)
    raise Refusal(f"{place}: {column!r} is {describe(value)}. Expected true or false.")


def token_ids(place: str, column: str, value: Any) -> list[int]:
    """Token ids; whether the tokenizer has them is seen later."""
    if not isinstance(value, list):
        raise Refusal(f"{place}: {column!r} is {describe(value)}. Expected a list of token ids.")
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int):
            raise Refusal(f"{place}: {column!r} holds {describe(item)}. Expected token ids alone.")
    return list(value)


def spelt_out(place: str, ours: str, cell: str) -> Any:
    """What a cell of a CSV file stands for, given what is expected there.

    Raises:
        Refusal: it does not spell what is expected.
    """
    if ours in _NUMBERS:
        if not cell.strip():
            return None
        try:
            return float(cell)
        except ValueError:
            raise Refusal(f"{place}: {ours!r} is {shorten(cell)}. Expected a number.") from None
    if ours == "label":
        word = cell.strip().lower()
        if word and word not in _TRUTHS:
            raise Refusal(f"{place}: {ours!r} is {shorten(cell)}. Expected true or false.")
        return _TRUTHS.get(word)
    if ours in _TEXTS:
        return _messages_or_text(cell)
    if not cell.strip():
        return None
    try:
        data = json.loads(cell)
    except (ValueError, RecursionError):
        raise Refusal(
            f"{place}: {ours!r} is {shorten(cell)}. Expected a JSON list in this cell."
        ) from None
    return _unicode(data)


def _unicode(data: Any) -> Any:
    if has_surrogate(data):
        raise Unusable(NOT_UNICODE)
    return data


def _messages_or_text(cell: str) -> Any:
    """Messages written as JSON, else the text as it is."""
    if not cell.lstrip().startswith("[{"):
        return cell
    try:
        data = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    speaks = all(isinstance(m, dict) and ("role" in m or "from" in m) for m in data)
    return _unicode(data) if speaks else cell
