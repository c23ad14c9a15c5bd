"""The page that ``lit-pref inspect`` prints: plain text, in colour where that is wanted."""

from __future__ import annotations

import textwrap
import unicodedata
from collections import Counter
from collections.abc import Sequence

from lit_pref.formats import Reading, TextEncoder
from lit_pref.formats.survey import Survey, histogram, roles
from lit_pref.types import Group, Response

__all__ = ["Page"]

# Two shades of each role, taken in turn, so that the border of each token is seen.
_SHADES = {
    "prompt": ("36", "96"),
    "chosen": ("32", "92"),
    "rejected": ("31", "91"),
    "response": ("33", "93"),
}
_BOLD, _DIM, _WARN, _LOSS = "1", "2", "33", "4"


class Page:
    """Lays out what was found.

    Args:
        colour: write terminal colours; without them tokens are separated by ``|``.
        width: columns of the terminal.
    """

    def __init__(self, *, colour: bool, width: int) -> None:
        self.colour, self.width = colour, max(40, width)

    def render(
        self, reading: Reading, found: Survey, *, model: str, tokens: int, max_dropped: float
    ) -> str:
        """The whole page.

        Args:
            reading: how the file was read.
            found: what was found.
            model: whose tokenizer it was.
            tokens: tokens shown of a prompt or a response at most.
            max_dropped: share of dropped rows above which training refuses the file.
        """
        parts = [self._head(reading, model)]
        if found.shown:
            parts.append(self._legend())
        parts += [self._group(g, reading.encoder, reading.drops.unit, tokens) for g in found.shown]
        parts.append(self._lengths(found))
        parts.append(self._repeats(found, reading.drops.unit))
        parts.append(self._dropped(reading, found))
        parts.append(self._verdict(reading, found, max_dropped))
        return "\n\n".join(part for part in parts if part)

    # ------------------------------------------------------------------ parts

    def _head(self, reading: Reading, model: str) -> str:
        encoder = reading.encoder
        layout = "nothing" if reading.layout is None else reading.layout.describe()
        response = encoder.max_response_tokens
        room = f"{response} tokens" if response else f"what remains of {encoder.context_length}"
        template = "with" if encoder.has_template else "without"
        long = f"longer: {encoder.long_prompts}"
        return "\n".join(
            [
                self._paint(f"{reading.source.name}: {reading.source.kind}", _BOLD),
                f"read as    {layout}",
                f"tokenizer  of model {model}, {encoder.vocabulary} tokens, {template} a chat "
                "template",
                f"limits     prompts {encoder.max_prompt_tokens} tokens ({long}), responses {room} "
                f"(longer: {encoder.long_responses})",
            ]
        )

    def _legend(self) -> str:
        if not self.colour:
            return (
                "Tokens are separated by |. Those of responses carry loss, those of prompts do not."
            )
        names = ", ".join(self._paint(role, shades[0]) for role, shades in _SHADES.items())
        loss = self._paint("underlined", _LOSS)
        return f"{names}; the shade changes with each token; {loss}: carries loss"

    def _group(self, group: Group, encoder: TextEncoder, unit: str, most: int) -> str:
        facts = [f"{unit} {group.prompt.row}"]
        if group.margin is not None:
            facts.append(f"margin {group.margin:g}")
        if group.weight != 1:
            facts.append(f"weight {group.weight:g}")
        if group.prompt.columns:
            facts.append(f"further columns: {', '.join(map(ascii, group.prompt.columns))}")
        lines = [self._paint(", ".join(facts), _BOLD)]
        lines.append(self._tokens("prompt", group.prompt.ids, "no loss", encoder, most))
        for role, response in zip(roles(group), group.responses, strict=True):
            lines.append(self._tokens(role, response.ids, _facts(response), encoder, most))
        return "\n".join(lines)

    def _tokens(
        self, role: str, ids: Sequence[int], note: str, encoder: TextEncoder, most: int
    ) -> str:
        head = f"{role:<8} {len(ids)} tokens, {note}"
        pieces = [_visible(p) for p in encoder.pieces(ids[:most])]
        if self.colour:
            loss = "" if role == "prompt" else f";{_LOSS}"
            shades = _SHADES[role]
            body = "".join(self._paint(p, shades[n % 2] + loss) for n, p in enumerate(pieces))
        else:
            body = "|".join(pieces)
        more = f" ... {len(ids) - most} more" if len(ids) > most else ""
        return f"{head}\n  {body}{more}"

    def _lengths(self, found: Survey) -> str:
        blocks = []
        for role, lengths in found.lengths.items():
            shape = histogram(lengths)
            head = f"{role} length in tokens: median {shape.median}, 95% {shape.p95}, "
            lines = [self._paint(f"{head}longest {shape.largest}", _BOLD)]
            digits, most = len(str(shape.edges[-1])), max(shape.counts)
            for low, high, count in zip(shape.edges, shape.edges[1:], shape.counts, strict=False):
                bar = "#" * -(-count * min(60, self.width - 2 * digits - 16) // most)
                bar = self._paint(bar, _SHADES[role][0])
                lines.append(f"  {low:>{digits}}-{high - 1:<{digits}} {count:>8} {bar}".rstrip())
            blocks.append("\n".join(lines))
        return "\n".join(blocks)

    def _repeats(self, found: Survey, unit: str) -> str:
        def pairs(rows: Sequence[tuple[int, int]]) -> str:
            return ", ".join(f"{row} (as {earlier})" for row, earlier in rows)

        lines = [f"different prompts  {found.prompts} in {found.usable} usable rows"]
        for name, count, listed in (
            ("duplicates", len(found.duplicates), pairs(found.duplicates)),
            ("contradictions", len(found.contradictions), pairs(found.contradictions)),
            ("ties", len(found.ties), ", ".join(map(str, found.ties))),
        ):
            text = f"{name:<18} {count}" + (f": {unit} {listed}" if count else "")
            wrapped = textwrap.wrap(text, self.width, subsequent_indent=" " * 19)
            lines.append("\n".join(wrapped))
        return "\n".join(lines)

    def _dropped(self, reading: Reading, found: Survey) -> str:
        lines = [f"used, but changed  {n} x {name}" for name, n in reading.drops.changes.items()]
        if found.dropped:
            reasons = Counter(reason for _, reason, _ in found.dropped)
            total = f"{len(found.dropped)} of {reading.drops.rows} rows would be dropped"
            listed = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
            lines.append(self._paint(f"{total}: {listed}", f"{_BOLD};{_WARN}"))
            lines += [
                f"  {place}: {reason}  {self._paint(beginning, _DIM)}"
                for place, reason, beginning in found.dropped
            ]
        return "\n".join(lines)

    def _verdict(self, reading: Reading, found: Survey, max_dropped: float) -> str:
        rows, dropped = reading.drops.rows, reading.drops.dropped
        if not rows:
            return self._paint("The file has no rows: training would refuse it.", _WARN)
        if dropped == rows or dropped / rows > max_dropped:
            text = (
                f"Training would refuse the file: {dropped / rows:.1%} of its rows would be "
                f"dropped, more than task.max_dropped={max_dropped:g} allows."
            )
            return self._paint(text, f"{_BOLD};{_WARN}")
        return f"Training would use {found.usable} of {rows} rows."

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text


def _facts(response: Response) -> str:
    facts = ["all carry loss"]
    if not response.finished:
        facts.append("cut: no end of sequence")
    for name in ("rank", "label", "reward"):
        value = getattr(response, name)
        if value is not None:
            facts.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(facts)


def _visible(piece: str) -> str:
    r"""A token as one line: line ends as \n, and nothing that could steer a terminal."""

    def show(character: str) -> str:
        if character == "\n":
            return "\\n"
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
            return ascii(character)[1:-1]
        return character

    return "".join(map(show, piece))
