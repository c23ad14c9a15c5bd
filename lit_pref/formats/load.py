"""From the user's file to prompts and groups: read, understand, tokenise, count what is dropped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from lit_pref.formats.drops import Drops, Unusable
from lit_pref.formats.encode import TextEncoder
from lit_pref.formats.readers import read_rows
from lit_pref.formats.records import PAIRS, PROMPTS, Answer, Record, Shape, check_columns, parse_row
from lit_pref.types import Group, Prompt, Refusal, Response

__all__ = ["Loaded", "load_pairs", "load_prompts"]

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Loaded(Generic[Item]):
    """What a file gave: the usable items in the order of the file, and what was dropped."""

    items: list[Item]
    drops: Drops


def load_prompts(
    path: str | Path,
    *,
    encoder: TextEncoder,
    columns: Mapping[str, str] | None = None,
    max_dropped: float = 0.2,
    first_id: int = 0,
    name: str | None = None,
) -> Loaded[Prompt]:
    """Read a file of prompts; columns beside ``prompt`` are kept in ``Prompt.columns``.

    Args:
        path: the file.
        encoder: tokenises and limits lengths.
        columns: the user's column names by ours.
        max_dropped: largest share of rows that may be unusable.
        first_id: id of a prompt is this plus its line.
        name: what to call the file; the path as given by default.

    Raises:
        Refusal: the file is not what it should be, or too much of it is unusable.
    """

    def build(record: Record, drops: Drops) -> Prompt:
        return _prompt(record, encoder, first_id)

    return _load(path, PROMPTS, build, columns=columns, max_dropped=max_dropped, name=name)


def load_pairs(
    path: str | Path,
    *,
    encoder: TextEncoder,
    columns: Mapping[str, str] | None = None,
    max_dropped: float = 0.2,
    first_id: int = 0,
    name: str | None = None,
) -> Loaded[Group]:
    """Read a file of preference pairs as groups of two: rank 0 is chosen, rank 1 rejected.

    Arguments and refusals as for ``load_prompts``.
    """

    def build(record: Record, drops: Drops) -> Group:
        prompt = _prompt(record, encoder, first_id)
        responses = [_response(a, encoder, len(prompt.ids)) for a in record.answers]
        if responses[0].ids == responses[1].ids:
            raise Unusable("chosen equal to rejected")
        drops.cut += sum(not r.finished for r in responses)
        return Group(prompt=prompt, responses=responses, margin=record.margin, weight=record.weight)

    return _load(path, PAIRS, build, columns=columns, max_dropped=max_dropped, name=name)


def _load(
    path: str | Path,
    shape: Shape,
    build: Callable[[Record, Drops], Item],
    *,
    columns: Mapping[str, str] | None,
    max_dropped: float,
    name: str | None,
) -> Loaded[Item]:
    if not 0 <= max_dropped <= 1:
        raise Refusal(
            f"task.max_dropped is {max_dropped}. Expected a share of rows from 0 to 1, such as 0.2."
        )
    columns = check_columns(columns)
    drops = Drops(file=str(path) if name is None else name)
    items: list[Item] = []
    for row in read_rows(path, name=name):
        drops.rows += 1
        try:
            record = parse_row(row, shape, columns)
            try:
                items.append(build(record, drops))
            except Refusal as refusal:  # the encoder does not know which row it is at
                raise Refusal(f"{row.place}: {refusal}") from refusal
        except Unusable as unusable:
            drops.add(str(unusable), row.line)
    drops.close(max_dropped)
    return Loaded(items, drops)


def _prompt(record: Record, encoder: TextEncoder, first_id: int) -> Prompt:
    return Prompt(
        id=first_id + record.line,
        text=record.prompt,
        ids=encoder.encode_prompt(record.prompt),
        file=record.file,
        row=record.line,
        columns=record.columns,
    )


def _response(answer: Answer, encoder: TextEncoder, prompt_length: int) -> Response:
    ids = encoder.encode_response(answer.text, prompt_length=prompt_length)
    return Response(
        ids=ids,
        text=encoder.decode(ids),
        rank=answer.rank,
        label=answer.label,
        reward=answer.reward,
        finished=encoder.finished(ids),
    )
