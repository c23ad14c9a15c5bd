"""The given responses of a row: a pair, several with ranks or rewards, or one with a label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lit_pref.formats.drops import Unusable
from lit_pref.formats.messages import parse_messages, plain
from lit_pref.formats.rows import describe
from lit_pref.formats.values import number, numbers, token_ids, truth
from lit_pref.types import Messages, Refusal

__all__ = ["Answer", "one_answer", "parse_list", "parse_pair", "parse_single", "parse_token_pair"]

Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One given response, as the user wrote it, and what the data says of it."""

    text: str | Messages | None = None
    ids: list[int] | None = None
    rank: int | None = None
    label: bool | None = None
    reward: float | None = None
    behaviour: str | None = None
    behaviour_logps: list[float] | None = None
    finished: bool | None = None

    def but(self, *, text: str | Messages) -> Answer:
        """The same with another text."""
        return replace(self, text=text)


def parse_pair(place: str, values: Values) -> tuple[Answer, Answer]:
    """Chosen (rank 0) and rejected (rank 1); whole conversations stay whole."""
    chosen, rejected = (
        Answer(
            text=_text(place, name, values[name]),
            rank=rank,
            reward=number(place, f"{name}_reward", values.get(f"{name}_reward")),
        )
        for rank, name in enumerate(("chosen", "rejected"))
    )
    return chosen, rejected


def parse_token_pair(place: str, values: Values) -> tuple[Answer, Answer]:
    """A pair that is tokenised already."""
    chosen, rejected = (
        Answer(
            ids=token_ids(place, f"{name}_ids", values[f"{name}_ids"]),
            rank=rank,
            reward=number(place, f"{name}_reward", values.get(f"{name}_reward")),
        )
        for rank, name in enumerate(("chosen", "rejected"))
    )
    return chosen, rejected


def parse_single(place: str, values: Values) -> Answer:
    """One response with the label or the reward that it may have."""
    ids = text = None
    if "completion_ids" in values:
        ids = token_ids(place, "completion_ids", values["completion_ids"])
    else:
        text = _text(place, "completion", values["completion"])
        one_answer(place, "completion", text)
        if not plain(text):
            raise Unusable("empty response")
    return Answer(
        text=text,
        ids=ids,
        label=truth(place, "label", values.get("label")),
        reward=number(place, "reward", values.get("reward")),
    )


def parse_list(place: str, values: Values, column: str) -> tuple[Answer, ...]:
    """Several responses; ranks are made 0 (best) and up, equal where the data's are.

    Raises:
        Refusal: an entry is no response, or a list beside it has another length.
        Unusable: no responses, an empty one, all alike, or a ranking that prefers none.
    """
    given = values["completions"]
    if not isinstance(given, list):
        raise Refusal(f"{place}: {column!r} is {describe(given)}. Expected a list of responses.")
    if not given:
        raise Unusable("no responses")
    entries = [_entry(f"{place}: entry {n} of {column!r}", e) for n, e in enumerate(given, 1)]
    count = len(entries)
    rewards = numbers(place, "rewards", values.get("rewards"), count)
    ranks = numbers(place, "ranks", values.get("ranks"), count)
    labels = values.get("labels")
    if labels is not None and (not isinstance(labels, list) or len(labels) != count):
        raise Refusal(f"{place}: 'labels' is not a list of {count} entries, one per response.")
    for n, entry in enumerate(entries):
        entry["reward"] = rewards[n] if rewards[n] is not None else entry["reward"]
        entry["rank"] = ranks[n] if ranks[n] is not None else entry["rank"]
        if labels is not None:
            entry["label"] = truth(place, "label", labels[n])
    _rank(entries)
    return tuple(Answer(**entry) for entry in entries)


def _entry(place: str, entry: Any) -> dict[str, Any]:
    """A response by the fields of ``Answer``; the rank is still the user's number."""
    out: dict[str, Any] = {"text": entry, "reward": None, "rank": None}
    if isinstance(entry, dict) and "role" not in entry and "from" not in entry:
        key = next((k for k in ("completion", "text", "response", "content") if k in entry), "")
        out = {
            "text": entry.get(key),
            "ids": None if entry.get("ids") is None else token_ids(place, "ids", entry["ids"]),
            "reward": number(place, "reward", entry.get("reward", entry.get("score"))),
            "rank": number(place, "rank", entry.get("rank")),
            "label": truth(place, "label", entry.get("label")),
            "finished": truth(place, "finished", entry.get("finished")),
            "behaviour_logps": _logps(place, entry),
        }
        if isinstance(entry.get("behaviour"), str):
            out["behaviour"] = entry["behaviour"]
    text = out["text"] = _text(place, "completion", out["text"])
    one_answer(place, "completion", text)
    if not plain(text) and out.get("ids") is None:
        raise Unusable("empty response")
    return out


def _logps(place: str, entry: Mapping[str, Any]) -> list[float] | None:
    """Behaviour log-probs, one per token."""
    if entry.get("behaviour_logps") is None or entry.get("ids") is None:
        return None
    values = numbers(place, "behaviour_logps", entry["behaviour_logps"], len(entry["ids"]))
    if any(v is None or v > 1e-3 for v in values):
        raise Unusable("behaviour log-prob above 0 or missing")
    return [float(v) for v in values if v is not None]


def _rank(entries: list[dict[str, Any]]) -> None:
    ranks = [e["rank"] for e in entries]
    if all(r is None for r in ranks):
        return
    if any(r is None for r in ranks):
        raise Unusable("response without a rank")
    places = {r: n for n, r in enumerate(sorted(set(ranks)))}
    if len(places) == 1 and len(ranks) > 1:
        raise Unusable("tie")
    for entry in entries:
        entry["rank"] = places[entry["rank"]]


def _text(place: str, column: str, value: Any) -> str | Messages:
    return value if isinstance(value, str) else parse_messages(place, column, value)


def one_answer(place: str, column: str, text: str | Messages | None) -> None:
    """Refuse messages other than one of the assistant."""
    if isinstance(text, list) and text and [m["role"] for m in text] != ["assistant"]:
        roles = ", ".join(m["role"] for m in text[:8])
        raise Refusal(
            f"{place}: {column!r} has messages with the roles {roles}. Expected exactly one "
            "message, of the role assistant; put what comes before it into 'prompt'."
        )
