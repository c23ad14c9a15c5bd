"""Reading ``samples.jsonl`` of an earlier run back into groups, every line checked."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from lit_pref.tasks.base import Task
from lit_pref.types import Group, Refusal

__all__ = ["read_samples"]

_KEYS = (
    "prompt_id", "prompt", "prompt_ids", "round", "policy_version", "source", "file", "row",
    "sampling", "reward_source", "responses",
)  # fmt: skip
_RESPONSE_KEYS = (
    "ids", "text", "reward", "label", "rank", "behaviour", "behaviour_logps", "finished",
)  # fmt: skip
_WHAT = "expected a line of samples.jsonl as runs write it"


def read_samples(path: str | Path, *, task: Task, vocab_size: int | None = None) -> list[Group]:
    """The groups of a file, in its order; where each was read is its ``origin``.

    Args:
        path: a ``samples.jsonl``, or the run directory that holds one.
        task: decodes responses: that shows whether the tokens mean the same here.
        vocab_size: number of tokens that the model knows; None: not checked.

    Raises:
        Refusal: no such file, a line that is not what it should be, tokens of another tokenizer.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / "samples.jsonl"
    if not file.is_file():
        raise Refusal(
            f"data.path={path}: there is no file {file}; give the samples.jsonl of an earlier run, "
            "or its run directory"
        )
    groups = [_group(place, record, task, vocab_size) for place, record in _lines(file)]
    for group in groups:
        assert group.origin is not None
        group.origin["file"] = str(file)
    if not groups:
        raise Refusal(
            f"data.path={path}: {file} holds no groups; runs on data=offline with a file, and runs "
            "on data=replay, sample nothing. Give the samples.jsonl of a run that did"
        )
    return groups


def _lines(file: Path) -> Iterator[tuple[tuple[Path, int], dict[str, Any]]]:
    """((file, line), record) of each line that is not blank."""
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            if not raw.strip():
                continue
            try:
                record = json.loads(raw.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                raise _wrong(
                    (file, number), f"it cannot be read as JSON in UTF-8 ({error})"
                ) from None
            if not isinstance(record, dict):
                raise _wrong((file, number), f"it is {_kind(record)}, not an object")
            yield (file, number), record


def _group(
    place: tuple[Path, int], record: dict[str, Any], task: Task, vocab_size: int | None
) -> Group:
    _need(place, record, _KEYS, "")
    if not isinstance(record["responses"], list) or not record["responses"]:
        raise _wrong(place, f"responses is {_kind(record['responses'])}, not a list of responses")
    _ids(place, record["prompt_ids"], "prompt_ids", vocab_size)
    if not record["prompt_ids"]:
        raise _wrong(place, "prompt_ids is empty")
    for name, kind in (("prompt_id", int), ("round", int), ("policy_version", int),
                       ("sampling", dict), ("source", str)):  # fmt: skip
        if not isinstance(record[name], kind) or isinstance(record[name], bool):
            raise _wrong(place, f"{name} is {_kind(record[name])}, not {_NAMES[kind]}")
    if not isinstance(record["prompt"], str | list):
        raise _wrong(place, f"prompt is {_kind(record['prompt'])}, not text or chat messages")
    for n, response in enumerate(record["responses"]):
        _response(place, response, f"responses[{n}]", vocab_size)
    _comparisons(place, record.get("comparisons"), len(record["responses"]))
    ends = {*task.eos_ids, *record["sampling"].get("stop_ids", ())}
    _same_tokens(place, record, task, ends)
    try:
        group = Group.from_state(record)
    except (TypeError, KeyError, ValueError) as error:
        raise _wrong(place, f"it does not make a group ({error})") from None
    group.origin = {"row": place[1], "source": group.source}
    group.source = "replay"
    return group


def _response(place: tuple[Path, int], response: Any, name: str, vocab_size: int | None) -> None:
    if not isinstance(response, dict):
        raise _wrong(place, f"{name} is {_kind(response)}, not an object")
    _need(place, response, _RESPONSE_KEYS, f"{name}.")
    _ids(place, response["ids"], f"{name}.ids", vocab_size)
    if response["reward"] is not None:
        _number(place, response["reward"], f"{name}.reward")
    if response["rank"] is not None and type(response["rank"]) is not int:
        raise _wrong(place, f"{name}.rank is {_kind(response['rank'])}, not a whole number or null")
    for field, kinds in (("label", (bool, type(None))), ("finished", bool), ("text", str)):
        if not isinstance(response[field], kinds):
            raise _wrong(place, f"{name}.{field} is {_kind(response[field])}")
    logps = response["behaviour_logps"]
    if logps is None:
        return
    if not isinstance(logps, list) or len(logps) != len(response["ids"]):
        raise _wrong(
            place,
            f"{name}.behaviour_logps has to be null or {len(response['ids'])} numbers, one for "
            "each token",
        )
    for value in logps:
        _number(place, value, f"{name}.behaviour_logps")


def _comparisons(place: tuple[Path, int], comparisons: Any, count: int) -> None:
    """What an oracle said, if one was asked: (first, second, P(first is better))."""
    if comparisons is None:
        return
    if not isinstance(comparisons, list):
        raise _wrong(place, f"comparisons is {_kind(comparisons)}, not a list")
    for n, entry in enumerate(comparisons):
        whole = isinstance(entry, list) and len(entry) == 3
        known = whole and all(type(i) is int and 0 <= i < count for i in entry[:2])
        if not known or entry[0] == entry[1]:
            raise _wrong(
                place,
                f"comparisons[{n}] has to be two different positions below {count} and the "
                "probability that the first response is better",
            )
        _number(place, entry[2], f"comparisons[{n}][2]")
        if not 0 <= entry[2] <= 1:
            raise _wrong(place, f"comparisons[{n}][2] is {entry[2]}, not a probability in [0, 1]")


def _need(
    place: tuple[Path, int], record: dict[str, Any], keys: Collection[str], where: str
) -> None:
    missing = [key for key in keys if key not in record]
    if missing:
        raise _wrong(place, f"{where}{missing[0]} is missing")


def _ids(place: tuple[Path, int], ids: Any, name: str, vocab_size: int | None) -> None:
    if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
        raise _wrong(place, f"{name} is not a list of token ids")
    if vocab_size is not None and ids and max(ids) >= vocab_size:
        raise Refusal(
            f"{place[0]}, line {place[1]}: {name} has token {max(ids)}, and the model knows "
            f"{vocab_size}: these samples are of another model; choose the model that made them"
        )


def _number(place: tuple[Path, int], value: Any, name: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise _wrong(place, f"{name} is {_kind(value)}, not a finite number")


def _same_tokens(
    place: tuple[Path, int], record: dict[str, Any], task: Task, ends: Collection[int]
) -> None:
    """The first response with tokens reads as it did: the tokenizer is the same."""
    for response in record["responses"]:
        ids = [i for i in response["ids"] if i not in ends]
        if ids:
            text = task.decode(ids)
            if text != response["text"]:
                raise Refusal(
                    f"{place[0]}, line {place[1]}: its tokens read {_short(text)} here, and "
                    f"{_short(response['text'])} where they were sampled: the tokenizers differ. "
                    "Choose the model and the task of the run that sampled them"
                )
            return


_NAMES: dict[type, str] = {int: "a whole number", dict: "an object", str: "text"}


def _kind(value: Any) -> str:
    """What a value is, in words of JSON."""
    if value is None:
        return "null"
    kinds = {bool: "true or false", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), f"the number {value}")


def _short(text: str, limit: int = 50) -> str:
    return ascii(text if len(text) <= limit else text[:limit] + "...")


def _wrong(place: tuple[Path, int], what: str) -> Refusal:
    return Refusal(f"{place[0]}, line {place[1]}: {what}; {_WHAT}. Correct or remove the line")
