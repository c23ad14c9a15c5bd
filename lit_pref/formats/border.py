"""Where the prompt ends in two texts that begin alike: never inside a token, a turn or a letter."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from lit_pref.formats.drops import Unusable

__all__ = ["common_beginning"]

_TRIES = 200


def common_beginning(
    chosen: str,
    rejected: str,
    *,
    tokenize: Callable[[str], list[int]],
    header: str = "",
    control: re.Pattern[str] | None = None,
) -> tuple[str, str, str]:
    """The longest common beginning that ends between two tokens of both texts.

    Args:
        chosen: a whole text.
        rejected: another one.
        tokenize: token ids of a text, without tokens around it.
        header: what a chat template writes before an answer; in a text that has it the border is
            after the last common one.
        control: matches the control tokens of the tokenizer.

    Returns:
        The common beginning, and the rest of each text.

    Raises:
        Unusable: there is none, or control tokens show turns that the border would split.
    """
    pairs = enumerate(zip(chosen, rejected, strict=False))
    same = next((n for n, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    if header and header in chosen[:same]:
        border = chosen.rindex(header, 0, same) + len(header)
        if header in chosen[border:] or header in rejected[border:]:
            raise Unusable("chosen and rejected differ before the last answer")
        return chosen[:border], chosen[border:], rejected[border:]
    if control is not None and control.search(chosen[:same]):
        raise Unusable("control token inside a prompt")
    whole = tokenize(chosen), tokenize(rejected)
    for border in _candidates(chosen, same):
        beginning = tokenize(chosen[:border])
        if all(ids[: len(beginning)] == beginning for ids in whole):
            if not chosen[:border].strip():
                break
            return chosen[:border], chosen[border:], rejected[border:]
    raise Unusable("chosen and rejected have no common beginning")


def _candidates(text: str, same: int) -> Iterator[int]:
    """Borders to try, the longest first: every character near the end, then beginnings of words.

    Each costs a tokenisation, so that there are fewer for a long text.
    """
    most = max(4, min(_TRIES, 2**21 // (same + 1)))
    near = range(same, max(0, same - 16), -1)
    words = [m.start() for m in re.finditer(r"\s+", text[:same]) if 0 < m.start() <= same - 16]
    yield from [*near, *reversed(words)][:most]
