"""Chat messages as users write them: ours, ShareGPT's, a table's; and dialogues in one string."""

from __future__ import annotations

import re
from typing import Any

from lit_pref.formats.drops import Unusable
from lit_pref.formats.rows import describe, nearest
from lit_pref.types import Messages, Refusal

__all__ = ["ROLES", "parse_messages", "plain", "split_dialogue", "split_turns"]

ROLES = ("system", "developer", "user", "assistant", "tool")
_OTHER_NAMES = {
    "human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "model": "assistant", "observation": "tool",
}  # fmt: skip
_TURN = re.compile(r"(?:\A|\n)\s*(Human|User|Assistant):")


def parse_messages(place: str, column: str, value: Any) -> Messages:
    """Messages of a column, each with ``role`` and ``content``.

    ShareGPT's ``from`` and ``value``, one message alone, and a table (an object of lists) are
    understood too.

    Raises:
        Refusal: it is something else, a role is unknown, or a further field would be lost.
    """
    if isinstance(value, dict):
        lists = value and all(isinstance(v, list) for v in value.values())
        if lists and len({len(v) for v in value.values()}) == 1:
            value = [dict(zip(value, row, strict=True)) for row in zip(*value.values())]  # noqa: B905
        elif "role" in value or "from" in value:
            value = [value]
    if not isinstance(value, list):
        raise Refusal(
            f"{place}: {column!r} is {describe(value)}. Expected a string, or a list of "
            'messages such as [{"role": "user", "content": "..."}].'
        )
    return [_message(f"{place}: message {n} of {column!r}", m) for n, m in enumerate(value, 1)]


def _message(place: str, message: Any) -> dict[str, str]:
    if not isinstance(message, dict):
        raise Refusal(
            f"{place} is {describe(message)}. Expected an object with 'role' and 'content'."
        )
    sharegpt = "from" in message and "role" not in message
    role_key, text_key = ("from", "value") if sharegpt else ("role", "content")
    for key in (role_key, text_key):
        if not isinstance(message.get(key), str):
            got = describe(message[key]) if key in message else "missing"
            raise Refusal(f"{place}: {key!r} is {got}. Expected a string.")
    role = _OTHER_NAMES.get(message[role_key], message[role_key])
    if role not in ROLES:
        raise Refusal(
            f"{place} has the unknown role {message[role_key]!a}"
            f"{nearest(message[role_key], (*ROLES, *_OTHER_NAMES))}. Expected one of "
            f"{', '.join(ROLES)}."
        )
    extra = [k for k, v in message.items() if k not in (role_key, text_key) and v is not None]
    if extra:
        raise Refusal(
            f"{place} has the further field {extra[0]!a}, which would be lost. Expected "
            f"{role_key!r} and {text_key!r} alone; write what matters into {text_key!r}."
        )
    return {"role": role, "content": message[text_key]}


def plain(text: str | Messages | None) -> str:
    """What a text says, whatever its roles."""
    return text if isinstance(text, str) else "".join(m["content"] for m in text or [])


def split_turns(chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
    """The common turns of two conversations as the prompt, and the answer of each.

    Raises:
        Unusable: they do not differ in exactly their last answer.
    """
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    if same == len(chosen) == len(rejected):
        raise Unusable("chosen equal to rejected")
    for name, rest in (("chosen", chosen[same:]), ("rejected", rejected[same:])):
        if not rest:
            raise Unusable(f"empty {name} response")
        if len(rest) > 1 or rest[0]["role"] != "assistant":
            raise Unusable("chosen and rejected differ before the last answer")
    if same == 0:
        raise Unusable("empty prompt")
    return chosen[:same], chosen[same:], rejected[same:]


def split_dialogue(chosen: str, rejected: str) -> tuple[str, Messages, str, str] | None:
    """A dialogue with lines that begin with ``Human:`` or ``User:`` and ``Assistant:``.

    It is split before its last answer, so that the border is between two turns.

    Returns:
        The prompt as a text (up to and with the last ``Assistant:``) and as messages, and what
        follows it in chosen and rejected; None if the texts are no such dialogues.

    Raises:
        Unusable: they differ before the last answer.
    """
    ends = []
    for text in (chosen, rejected):
        turns = list(_TURN.finditer(text))
        if not turns or turns[0].start() != 0 or not any(t[1] == "Assistant" for t in turns):
            return None
        ends.append(next(t for t in reversed(turns) if t[1] == "Assistant").end())
    head = chosen[: ends[0]]
    if head != rejected[: ends[1]]:
        raise Unusable("chosen and rejected differ before the last answer")
    parts = _TURN.split(head)[1:]  # role, text, role, text, ..., Assistant, nothing
    messages = [
        {"role": "assistant" if role == "Assistant" else "user", "content": text.strip()}
        for role, text in zip(parts[:-2:2], parts[1:-2:2], strict=True)
    ]
    return head, messages, chosen[ends[0] :], rejected[ends[1] :]
