"""From a row to a record: whether each column holds what it should. Nothing is tokenised yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_pref.formats.answers import (
    Answer,
    one_answer,
    parse_list,
    parse_pair,
    parse_single,
    parse_token_pair,
)
from lit_pref.formats.columns import CONVERSATION, Layout, missing_column
from lit_pref.formats.drops import Unusable
from lit_pref.formats.messages import parse_messages, plain, split_dialogue, split_turns
from lit_pref.formats.rows import Row, describe
from lit_pref.formats.values import number, spelt_out, token_ids
from lit_pref.types import Messages, Refusal

__all__ = ["Answer", "Record", "parse_row"]


@dataclass(kw_only=True, slots=True)
class Record:
    """A row whose columns are understood but not tokenised yet.

    Attributes:
        prompt: what is asked; None where ``prompt_ids`` says it alone or it is ``implicit``.
        prompt_ids: the prompt, already tokenised.
        turns: the same prompt as messages, for a model with a chat template.
        implicit: the prompt is the common beginning of the answers' texts; the tokenizer decides
            where it ends.
        answers: the given responses.
        margin, weight: of the group.
        columns: the columns that nothing else uses.
        number: what identifies the row in its file.
    """

    prompt: str | Messages | None = None
    prompt_ids: list[int] | None = None
    turns: Messages | None = None
    implicit: bool = False
    answers: tuple[Answer, ...] = ()
    margin: float | None = None
    weight: float = 1.0
    columns: dict[str, Any] = field(default_factory=dict)
    number: int


def parse_row(row: Row, layout: Layout) -> Record:
    """Understand a row's columns.

    Args:
        row: the row.
        layout: what the rows of its file are.

    Raises:
        Refusal: a column is missing or does not hold what it should.
        Unusable: the row is well-formed but says nothing that can be trained on.
    """
    if row.fault:
        raise Unusable(row.fault)
    values: dict[str, Any] = {}
    for ours, theirs in layout.columns.items():
        if theirs in row.data:
            values[ours] = row.data[theirs]
        elif ours in layout.needs:
            raise Refusal(missing_column(row, ours, theirs, layout.kind))
    used = set(layout.columns.values())
    for ours, aliases in layout.optional.items():
        theirs = next((a for a in aliases if a in row.data and a not in used), "")
        if theirs:
            values[ours] = row.data[theirs]
            used.add(theirs)
    if row.textual:
        values = {ours: spelt_out(row.place, ours, v) for ours, v in values.items()}
    record = Record(
        margin=number(row.place, "margin", values.get("margin")),
        weight=_weight(row.place, values.get("weight")),
        columns={key: value for key, value in row.data.items() if key not in used},
        number=row.number,
    )
    _PARSERS[layout.kind](row.place, values, record, layout)
    return record


Values = Mapping[str, Any]


def _prompts(place: str, values: Values, record: Record, layout: Layout) -> None:
    if "prompt_ids" in values:
        record.prompt_ids = token_ids(place, "prompt_ids", values["prompt_ids"])
    if "prompt" not in values:
        return
    name = layout.columns["prompt"]
    if name in CONVERSATION and not isinstance(values["prompt"], str):
        messages = parse_messages(place, name, values["prompt"])
        if messages and messages[-1]["role"] == "assistant":  # an answer that is given already
            record.columns.setdefault("completion", messages[-1]["content"])
            messages = messages[:-1]
        values = {**values, "prompt": messages}
    record.prompt = _prompt(place, values, name)


def _pairs(place: str, values: Values, record: Record, layout: Layout) -> None:
    answers: tuple[Answer, ...] = parse_pair(place, values)
    chosen, rejected = (a.text for a in answers)
    whole = [isinstance(t, list) and len(t) > 1 for t in (chosen, rejected)]
    if all(whole):  # conversations that repeat the prompt
        assert isinstance(chosen, list) and isinstance(rejected, list)
        prompt, *last = split_turns(chosen, rejected)
        _check_repeated(place, values["prompt"], prompt)
        record.prompt = _with_system(place, values, prompt)
        answers = tuple(a.but(text=t) for a, t in zip(answers, last, strict=True))
    else:
        record.prompt = _prompt(place, values, layout.columns["prompt"])
        for name, answer in zip(("chosen", "rejected"), answers, strict=True):
            one_answer(place, name, answer.text)
    record.answers = answers
    _check_pair(answers)


def _implicit_pairs(place: str, values: Values, record: Record, layout: Layout) -> None:
    answers: tuple[Answer, ...] = parse_pair(place, values)
    chosen, rejected = (a.text for a in answers)
    if plain(chosen) == plain(rejected) and plain(chosen):
        raise Unusable("chosen equal to rejected")
    if isinstance(chosen, list) and isinstance(rejected, list):
        prompt, *last = split_turns(chosen, rejected)
        record.prompt = _with_system(place, values, prompt)
        record.answers = tuple(a.but(text=t) for a, t in zip(answers, last, strict=True))
        _check_pair(record.answers)
        return
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        raise Refusal(
            f"{place}: 'chosen' is {describe(chosen)} and 'rejected' is {describe(rejected)}. "
            "Expected two strings or two lists of messages."
        )
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise Unusable(f"empty {name} response")
    record.answers = answers
    dialogue = split_dialogue(chosen, rejected)
    if dialogue is None:
        record.implicit = True
        return
    record.prompt, record.turns, *texts = dialogue
    record.answers = tuple(a.but(text=t) for a, t in zip(answers, texts, strict=True))
    _check_pair(record.answers)


def _tokenised_pairs(place: str, values: Values, record: Record, layout: Layout) -> None:
    _given_prompt(place, values, record)
    record.answers = parse_token_pair(place, values)


def _several(place: str, values: Values, record: Record, layout: Layout) -> None:
    if "prompt_ids" in values and values["prompt_ids"] is not None:
        record.prompt_ids = token_ids(place, "prompt_ids", values["prompt_ids"])
    record.prompt = _prompt(place, values, layout.columns["prompt"])
    record.answers = parse_list(place, values, layout.columns["completions"])


def _tokenised(place: str, values: Values, record: Record, layout: Layout) -> None:
    _given_prompt(place, values, record)
    record.answers = (parse_single(place, values),)


def _single(place: str, values: Values, record: Record, layout: Layout) -> None:
    given = values["completion"]
    if isinstance(given, list) and len(given) == 2 and all(isinstance(t, str) for t in given):
        pair = {**values, "chosen": given[0], "rejected": given[1]}  # Alpaca with a ranking
        return _pairs(place, pair, record, layout)
    record.prompt = _prompt(place, values, layout.columns["prompt"])
    record.answers = (parse_single(place, values),)


def _conversations(place: str, values: Values, record: Record, layout: Layout) -> None:
    messages = parse_messages(place, layout.columns["prompt"], values["prompt"])
    if not messages or messages[-1]["role"] != "assistant":
        raise Unusable("conversation without a last answer")
    record.prompt = _with_system(place, values, messages[:-1])
    record.answers = (parse_single(place, {**values, "completion": messages[-1:]}),)


_PARSERS: dict[str, Callable[[str, Values, Record, Layout], None]] = {
    "prompts": _prompts,
    "pairs": _pairs,
    "pairs with implicit prompts": _implicit_pairs,
    "tokenised pairs": _tokenised_pairs,
    "several responses": _several,
    "single responses": _single,
    "tokenised responses": _tokenised,
    "conversations": _conversations,
}


def _given_prompt(place: str, values: Values, record: Record) -> None:
    record.prompt_ids = token_ids(place, "prompt_ids", values["prompt_ids"])
    if values.get("prompt") is not None:
        record.prompt = _prompt(place, values, "prompt")


def _prompt(place: str, values: Values, column: str) -> str | Messages:
    """The prompt with what belongs to it: an Alpaca input, earlier turns, a system message."""
    value = values["prompt"]
    if isinstance(value, str):
        prompt: str | Messages = value
    else:
        prompt = parse_messages(place, column, value)
        if prompt and prompt[-1]["role"] == "assistant":
            raise Refusal(
                f"{place}: the last message of {column!r} has the role 'assistant'. Expected a "
                "prompt that ends with what is to be answered; move the answer to 'chosen' and "
                "'rejected', or remove it."
            )
    extra = _text(place, "input", values.get("input"))
    if extra:
        if not isinstance(prompt, str):
            raise Refusal(f"{place}: 'input' beside chat messages. Expected it beside a string.")
        prompt = f"{prompt}\n{extra}" if prompt else extra
    return _with_system(place, values, prompt)


def _with_system(place: str, values: Values, prompt: str | Messages) -> str | Messages:
    before: Messages = []
    system = _text(place, "system", values.get("system"))
    if system:
        before.append({"role": "system", "content": system})
    history = values.get("history") or []
    for turn in history if isinstance(history, list) else [history]:
        if not (isinstance(turn, (list, tuple)) and [type(t) for t in turn] == [str, str]):
            raise Refusal(
                f"{place}: 'history' holds {describe(turn)}. Expected pairs of strings, "
                "[question, answer]."
            )
        before.append({"role": "user", "content": turn[0]})
        before.append({"role": "assistant", "content": turn[1]})
    if not before or not plain(prompt).strip():
        return prompt
    if isinstance(prompt, str):
        return [*before, {"role": "user", "content": prompt}]
    if system and prompt[0]["role"] == "system":
        raise Refusal(f"{place}: a 'system' column and a system message. Expected one of them.")
    return [*before, *prompt]


def _text(place: str, column: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Refusal(f"{place}: {column!r} is {describe(value)}. Expected a string.")
    return value.strip()


def _check_repeated(place: str, given: Any, turns: Messages) -> None:
    """A prompt beside whole conversations must be what they begin with."""
    if isinstance(given, str):
        same = given.strip() in (turns[-1]["content"].strip(), turns[0]["content"].strip())
    else:
        same = parse_messages(place, "prompt", given) == turns
    if not same:
        raise Unusable("chosen and rejected do not begin with the prompt")


def _check_pair(answers: tuple[Answer, ...]) -> None:
    for name, answer in zip(("chosen", "rejected"), answers, strict=True):
        if not plain(answer.text):
            raise Unusable(f"empty {name} response")
    if plain(answers[0].text) == plain(answers[1].text):
        raise Unusable("chosen equal to rejected")


def _weight(place: str, value: Any) -> float:
    weight = number(place, "weight", value)
    if weight is not None and weight < 0:
        raise Unusable("negative weight")
    return 1.0 if weight is None else weight
