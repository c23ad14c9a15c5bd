"""From rows to prompts and groups, one at a time: understand, tokenise, count what is dropped."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from lit_pref.formats.answers import Answer
from lit_pref.formats.columns import Layout, find_layout
from lit_pref.formats.drops import Drops, Unusable
from lit_pref.formats.encode import TextEncoder
from lit_pref.formats.readers import Source
from lit_pref.formats.records import Record, parse_row
from lit_pref.formats.rows import Row
from lit_pref.types import Group, Messages, Prompt, Refusal, Response

__all__ = ["Outcome", "Reading"]

log = logging.getLogger(__name__)

_SAID_EVERY = 100_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one row: a group (without responses in a file of prompts), or a reason.

    Attributes:
        row: the row.
        group: what it gave, if it can be used.
        reason: why it cannot.
    """

    row: Row
    group: Group | None = None
    reason: str | None = None


class Reading:
    """Reads a source once, from its first row to its last.

    Args:
        source: where the rows come from.
        encoder: tokenises and limits lengths.
        columns: the user's column names by ours (``check_columns``).
        want: ``prompts``, or ``responses`` with their prompts.

    Attributes:
        layout: what the rows are, known after the first one.
        drops: what was dropped so far.
    """

    def __init__(
        self,
        source: Source,
        *,
        encoder: TextEncoder,
        columns: Mapping[str, str],
        want: Literal["prompts", "responses"],
    ) -> None:
        self.source = source
        self.encoder = encoder
        self.columns = columns
        self.want: Literal["prompts", "responses"] = want
        self.layout: Layout | None = None
        self.drops = Drops(file=source.name, unit=source.unit)

    def outcomes(self) -> Iterator[Outcome]:
        """Every row with what became of it; the rows are read while this is iterated over.

        Raises:
            Refusal: the file is not what it should be; names the file and the line.
        """
        for row in self.source.rows():
            self.drops.rows += 1
            if self.layout is None:
                self.layout = find_layout(row, self.columns, want=self.want)
                log.info("%s: read as %s.", self.source.name, self.layout.describe())
            if self.drops.rows % _SAID_EVERY == 0:
                log.info("%s: %d rows read.", self.source.name, self.drops.rows)
            try:
                record = parse_row(row, self.layout)
                try:
                    yield Outcome(row, group=self._group(record))
                except Refusal as refusal:  # the encoder does not know which row it is at
                    raise Refusal(f"{row.place}: {refusal}") from refusal
            except Unusable as unusable:
                self.drops.add(str(unusable), row.number)
                yield Outcome(row, reason=str(unusable))

    def groups(self) -> Iterator[Group]:
        """What the usable rows gave."""
        for outcome in self.outcomes():
            if outcome.group is not None:
                yield outcome.group

    # ------------------------------------------------------------------ inside

    def _group(self, record: Record) -> Group:
        encoder = self.encoder
        answers = record.answers
        if record.implicit:
            prompt, *rest = encoder.split_common(*(str(a.text) for a in answers))
            record.prompt = prompt
            answers = tuple(a.but(text=t) for a, t in zip(answers, rest, strict=True))
        elif record.turns and encoder.has_template:
            record.prompt = record.turns
            answers = tuple(a.but(text=str(a.text).strip()) for a in answers)
        text, ids, cut = self._prompt(record)
        responses = []
        if self.want == "responses":
            answers = self._without_prompt(ids, answers)
            responses = [self._response(a, n, ids) for n, a in enumerate(answers)]
            _check_different(responses)
            _check_logps(answers, responses)
        self._count(cut, answers, responses)
        return Group(
            prompt=Prompt(
                id=record.number,
                text=text,
                ids=ids,
                file=self.source.name,
                row=record.number,
                columns=record.columns,
            ),
            responses=responses,
            margin=record.margin,
            weight=record.weight,
        )

    def _prompt(self, record: Record) -> tuple[str | Messages, list[int], bool]:
        if record.prompt_ids is not None:
            ids, cut = self.encoder.given_prompt(record.prompt_ids)
            text = record.prompt
            return self.encoder.spell(ids) if text is None else text, ids, cut
        assert record.prompt is not None
        return record.prompt, *self.encoder.fit_prompt(record.prompt)

    def _response(self, answer: Answer, index: int, prompt: list[int]) -> Response:
        encoder = self.encoder
        name = ("chosen ", "rejected ")[index] if self._pairs else ""
        try:
            if answer.ids is not None:
                ids = encoder.given_response(answer.ids, prompt_length=len(prompt))
            else:
                assert answer.text is not None
                ids = encoder.encode_response(answer.text, prompt_length=len(prompt))
        except Unusable as unusable:
            if str(unusable) == "empty response":
                raise Unusable(f"empty {name}response") from None
            raise
        text = encoder.decode(ids)
        if answer.ids is not None and isinstance(answer.text, str) and len(ids) >= len(answer.ids):
            _check_text(text, answer.text)
        logps = answer.behaviour_logps
        return Response(
            ids=ids,
            text=text,
            rank=answer.rank,
            label=answer.label,
            reward=answer.reward,
            behaviour=answer.behaviour,
            behaviour_logps=None if logps is None else logps[: len(ids)],
            finished=encoder.finished(ids),
        )

    def _count(self, cut: bool, answers: tuple[Answer, ...], responses: list[Response]) -> None:
        """Count what is used but not whole."""
        self.drops.change("prompt cut", int(cut))
        for answer, response in zip(answers, responses, strict=self.want == "responses"):
            if not response.finished:
                given = answer.ids is not None and len(response.ids) >= len(answer.ids)
                self.drops.change("response without an end" if given else "response cut")

    @property
    def _pairs(self) -> bool:
        return self.layout is not None and "pairs" in self.layout.kind

    def _without_prompt(self, prompt: list[int], answers: tuple[Answer, ...]) -> tuple[Answer, ...]:
        """Tokenised responses that all repeat the whole prompt, without it."""
        size = len(prompt)
        if not all(
            a.ids is not None and len(a.ids) > size and a.ids[:size] == prompt for a in answers
        ):
            return answers
        self.drops.change("prompt repeated in tokenised responses removed")
        return tuple(
            Answer(ids=(a.ids or [])[size:], rank=a.rank, label=a.label, reward=a.reward)
            for a in answers
        )


def _check_different(responses: list[Response]) -> None:
    if len(responses) > 1 and all(r.ids == responses[0].ids for r in responses):
        pair = len(responses) == 2 and [r.rank for r in responses] == [0, 1]
        raise Unusable("chosen equal to rejected" if pair else "all responses equal")


def _check_logps(answers: tuple[Answer, ...], responses: list[Response]) -> None:
    """Log-probs belong to tokens: those of a response that lost or gained some do not."""
    for answer, response in zip(answers, responses, strict=True):
        logps = response.behaviour_logps
        if logps is not None and (answer.ids or [])[: len(logps)] != response.ids:
            raise Unusable("behaviour log-probs of other tokens")


def _check_text(decoded: str, given: str) -> None:
    if decoded.strip() != given.strip():
        raise Refusal(
            f"the ids of a response say {decoded[:40]!a}, but its text is {given[:40]!a}. Expected "
            "ids of this model's tokenizer; leave the ids out to tokenise the text."
        )
