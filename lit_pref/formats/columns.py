"""Which column means what: recognised by name, or mapped by ``task.columns``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

from lit_pref.formats.rows import Row, describe, nearest
from lit_pref.types import Refusal

__all__ = ["ALIASES", "Kind", "Layout", "check_columns", "find_layout", "missing_column"]

Kind = Literal[
    "prompts",
    "pairs",
    "pairs with implicit prompts",
    "tokenised pairs",
    "several responses",
    "single responses",
    "tokenised responses",
    "conversations",
]

CONVERSATION = ("messages", "conversations", "conversation")

ALIASES: dict[str, tuple[str, ...]] = {
    "prompt": (
        "prompt", "question", "problem", "query", "context", "instruction", *CONVERSATION,
    ),
    "system": ("system",),
    "input": ("input",),
    "history": ("history",),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "chosen_reward": ("chosen_reward", "score_chosen", "chosen_score", "chosen_rating"),
    "rejected_reward": ("rejected_reward", "score_rejected", "rejected_score", "rejected_rating"),
    "completions": ("completions", "responses"),
    "rewards": ("rewards", "scores"),
    "ranks": ("ranks",),
    "labels": (),
    "completion": ("completion", "response", "output"),
    "label": ("label", "kto_tag"),
    "reward": ("reward", "score"),
    "margin": ("margin",),
    "weight": ("weight",),
    "prompt_ids": ("prompt_ids", "prompt_input_ids"),
    "chosen_ids": ("chosen_ids", "chosen_input_ids"),
    "rejected_ids": ("rejected_ids", "rejected_input_ids"),
    "completion_ids": ("completion_ids", "completion_input_ids"),
}  # fmt: skip
"""The names that are recognised, by ours. The first that a file has is taken."""

_PROMPT = ("prompt", "prompt_ids", "system", "input", "history")
_WEIGHTS = ("margin", "weight")

# What each kind must have, in the order of precedence, and what it may have besides.
_KINDS: tuple[tuple[Kind, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "tokenised pairs",
        ("prompt_ids", "chosen_ids", "rejected_ids"),
        ("prompt", "chosen_reward", "rejected_reward", *_WEIGHTS),
    ),
    (
        "pairs",
        ("prompt", "chosen", "rejected"),
        ("system", "input", "history", "chosen_reward", "rejected_reward", *_WEIGHTS),
    ),
    (
        "pairs with implicit prompts",
        ("chosen", "rejected"),
        ("system", "chosen_reward", "rejected_reward", *_WEIGHTS),
    ),
    (
        "several responses",
        ("prompt", "completions"),
        ("prompt_ids", "system", "input", "history", "rewards", "ranks", "labels", *_WEIGHTS),
    ),
    (
        "tokenised responses",
        ("prompt_ids", "completion_ids"),
        ("prompt", "label", "reward", *_WEIGHTS),
    ),
    (
        "single responses",
        ("prompt", "completion"),
        ("system", "input", "history", "label", "reward", *_WEIGHTS),
    ),
    ("conversations", ("prompt",), ("system", "label", "reward", *_WEIGHTS)),
)
_RESPONSES = (
    "Expected responses: chosen and rejected (pairs), completions with ranks or rewards, or "
    "completion with a label"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What the rows of a file are.

    Attributes:
        kind: what a row holds.
        columns: the file's names by ours.
        needs: ours that every row must have.
        optional: names by ours that the first row lacks and later rows may have.
    """

    kind: Kind
    columns: dict[str, str]
    needs: tuple[str, ...]
    optional: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def describe(self) -> str:
        """For people: the kind, and what each column is read as."""
        parts = [a if a == b else f"{a} from {b!a}" for a, b in self.columns.items()]
        return f"{self.kind} ({', '.join(parts)})"


def check_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """The user's column names by ours, checked.

    Raises:
        Refusal: a name that is not ours, or a column name that is not a string.
    """
    for ours, theirs in (columns or {}).items():
        if ours not in ALIASES:
            raise Refusal(
                f"task.columns has the unknown name {ours!r}{nearest(str(ours), ALIASES)}. "
                f"Expected names among {', '.join(ALIASES)}, each with the column of your file."
            )
        if not isinstance(theirs, str):
            raise Refusal(
                f"task.columns.{ours} is {describe(theirs)}. Expected the name of a column of "
                f"your file, such as 'task.columns={{{ours}: my_{ours}}}'."
            )
    return dict(columns or {})


def find_layout(
    row: Row, columns: Mapping[str, str], *, want: Literal["prompts", "responses"]
) -> Layout:
    """What the rows of a file are, from its first row.

    Args:
        row: the first row.
        columns: the user's column names by ours (``check_columns``).
        want: ``prompts`` reads what is asked and nothing else; ``responses`` needs responses.

    Raises:
        Refusal: the columns are of no kind that we know; the message names what is missing.
    """
    found = _resolve(row, columns)
    for ours, theirs in columns.items():
        if theirs not in row.data and (want == "responses" or ours in _PROMPT):
            raise Refusal(missing_column(row, ours, theirs, want))
    kinds = [k for k in _KINDS if all(name in found for name in k[1])]
    kinds = [k for k in kinds if k[0] != "conversations" or _is_conversation(row, found)]
    if want == "prompts":
        if "prompt" in found or "prompt_ids" in found:
            needs: tuple[str, ...] = ("prompt",) if "prompt" in found else ("prompt_ids",)
            names = [n for n in _PROMPT if n in found]
            return _layout("prompts", names, needs, ("system",), found, columns)
        kinds = [k for k in kinds if k[0] == "pairs with implicit prompts"]
    if not kinds:
        raise Refusal(_no_kind(row, found, want))
    kind, needs, may = kinds[0]
    names = [*needs, *(n for n in may if n in found)]
    return _layout(kind, names, needs, may, found, columns)


def _layout(
    kind: Kind,
    names: list[str],
    needs: tuple[str, ...],
    may: tuple[str, ...],
    found: Mapping[str, str],
    columns: Mapping[str, str],
) -> Layout:
    alpaca = found.get("prompt") == "instruction"
    foreign = {p for p in ("input", "history") if not alpaca and p not in columns}
    names = [n for n in names if n not in foreign]  # of Alpaca alone, unless the user says so
    return Layout(
        kind=kind,
        columns={n: found[n] for n in names},
        needs=(*needs, *(n for n in names if n in columns)),
        optional={n: ALIASES[n] for n in may if n not in found and n not in foreign},
    )


def _resolve(row: Row, columns: Mapping[str, str]) -> dict[str, str]:
    found = {}
    taken = set(columns.values())
    for ours, aliases in ALIASES.items():
        if ours in columns:
            if columns[ours] in row.data:
                found[ours] = columns[ours]
            continue
        theirs = next((a for a in aliases if a in row.data and a not in taken), None)
        if theirs is not None:
            found[ours] = theirs
    return found


def _is_conversation(row: Row, found: Mapping[str, str]) -> bool:
    """Messages whose last one is an answer."""
    value = row.data[found["prompt"]]
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        last = value[-1].get("role", value[-1].get("from"))
        return last in ("assistant", "gpt")
    return found["prompt"] in CONVERSATION


def _no_kind(row: Row, found: Mapping[str, str], want: str) -> str:
    if want == "prompts" or "prompt" not in found:
        return missing_column(row, "prompt", "prompt", want)
    for ours, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if other in found:
            return missing_column(row, ours, ours, want)
    listed = ", ".join(ascii(key) for key in list(row.data)[:12])
    return (
        f"{row.place}: there are prompts but no responses. {_RESPONSES}; got {listed}. Rename "
        "the columns, or map them, such as 'task.columns={chosen: your_column}'. Prompts alone "
        "belong into task.prompts."
    )


def missing_column(row: Row, ours: str, theirs: str, want: str) -> str:
    """The message about a column that a row lacks, with the nearest name that it has."""
    have = list(row.data)
    listed = ", ".join(ascii(key) for key in have[:12]) or "none"
    mapped = f" (mapped from {ours!r} by task.columns)" if theirs != ours else ""
    close = get_close_matches(theirs.lower(), [key.lower() for key in have], n=1)
    guess = next((key for key in have if close and key.lower() == close[0]), None)
    meant = f" Did you mean {guess!a}?" if guess is not None else ""
    remedy = f"'task.columns={{{ours}: {ascii(guess)[1:-1] if guess else 'your_column'}}}'"
    expected = "the column prompt" if want == "prompts" else "prompt, chosen, rejected"
    return (
        f"{row.place}: the column {theirs!r}{mapped} is missing.{meant} Expected "
        f"{expected} (or another layout of docs/guide/text.md); got {listed}. Rename the "
        f"column, or map it with {remedy}."
    )
