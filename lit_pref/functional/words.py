"""The language of the length tasks: sixty words, a Markov chain, log-normal lengths.

A stand-in for a corpus that fits a laptop (arXiv 2404.14367, section 4: the length tasks). A prompt
is three words and a colon, and its first word has a topic. Each word of a response depends on the
word before and on the topic; its length does not depend on its words. Everything is fixed: there is
one such language, and no argument or seed changes it.

``V`` vocabulary, ``L`` longest response. Lengths are in tokens, the end of sequence included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from lit_pref.functional.rng import generator, uniforms
from lit_pref.types import Refusal

__all__ = [
    "COLON",
    "END",
    "LONGEST",
    "PROMPT_TOKENS",
    "SPREAD",
    "TOPICS",
    "TYPICAL",
    "VOCABULARY",
    "cut_length_probs",
    "length_probs",
    "overlap",
    "prompt_ids",
    "response_ids",
    "text_of",
    "topic_of",
    "transition_probs",
]

_SPECIAL = ("<pad>", "<eos>", "<unk>", ":")
END, COLON = 1, 3
WORDS = tuple(c + v for c in "bdfgklmnprst" for v in "aeiou")
VOCABULARY = (*_SPECIAL, *WORDS)
"""All 64 tokens, a token's id being its place."""
PROMPT_TOKENS = 4
LONGEST = 48
"""Tokens of the longest response, its end included."""
TYPICAL, SPREAD = 20, 0.4
"""Mode, in tokens, and sigma of the log-normal that response lengths follow."""
TOPICS = 6
_FIRST = len(_SPECIAL)


def length_probs(*, mode: float = TYPICAL, sigma: float = SPREAD, longest: int = LONGEST) -> Tensor:
    """A log-normal distribution cut into whole numbers of tokens.

    ``p(l)`` is proportional to ``F(l + 1/2) - F(l - 1/2)`` for l = 1 .. L, with F the
    distribution function of a log-normal variable whose density is largest at ``mode``:
    ``mu = log(mode) + sigma^2``.

    Args:
        mode: the likeliest length in tokens.
        sigma: standard deviation of the logarithm.
        longest: L.

    Returns:
        [L] float64; entry l - 1 is the probability of l tokens.

    Raises:
        Refusal: numbers that make no distribution.
    """
    if not (0 < mode <= longest and sigma > 0):
        raise Refusal(
            f"lengths need 0 < mode <= longest and sigma > 0, got mode={mode}, sigma={sigma}, "
            f"longest={longest}"
        )
    edges = torch.arange(longest + 1, dtype=torch.float64) + 0.5
    z = (edges.log() - math.log(mode) - sigma**2) / (sigma * math.sqrt(2))
    mass = torch.special.erf(z).diff()
    return mass / mass.sum()


def cut_length_probs(probs: Tensor, *, share: float, mean: float) -> Tensor:
    """Lengths after some responses were cut: ``share`` of them at a geometric number of tokens.

    With C geometric on 1, 2, ... of mean ``mean``, a response of l tokens becomes one of
    ``min(l, C)`` with probability ``share``, else it stays as it is.

    Args:
        probs: [L] lengths before.
        share: in [0, 1].
        mean: of C, at least 1.

    Returns:
        [L] lengths after.
    """
    stay = (1 - 1 / mean) ** torch.arange(len(probs) + 1, dtype=probs.dtype)  # P(C > l)
    longer = torch.cat([probs.flip(0).cumsum(0).flip(0), probs.new_zeros(1)])  # P(length > l)
    cut = -(stay * longer).diff()  # P(min > l - 1) - P(min > l)
    return (1 - share) * probs + share * cut


def overlap(first: Tensor, second: Tensor) -> float:
    """What two distributions share, ``sum_l min(p_l, q_l)``: 1 less their total variation.

    Args:
        first: [L], sums to 1.
        second: [L], sums to 1.
    """
    return float(torch.minimum(first, second).sum())


@cache
def transition_probs() -> Tensor:
    """[TOPICS, V, V] probability of the next word by topic and word before; no word is special.

    Softmax of ``1.5 a[previous, next] + b[topic, next]`` with standard normal a and b. The first
    word of a response follows the colon.
    """
    draw = generator("words", "language")
    pairs = torch.randn(len(VOCABULARY), len(WORDS), generator=draw, dtype=torch.float64)
    topics = torch.randn(TOPICS, 1, len(WORDS), generator=draw, dtype=torch.float64)
    out = torch.zeros(TOPICS, len(VOCABULARY), len(VOCABULARY), dtype=torch.float64)
    out[..., _FIRST:] = (1.5 * pairs + topics).softmax(-1)
    return out


def topic_of(prompt: Sequence[int]) -> int:
    """The topic of a prompt: that of its first word."""
    return (prompt[0] - _FIRST) % TOPICS


def prompt_ids(number: int) -> list[int]:
    """Tokens of prompt ``number``: three words and a colon."""
    words = torch.randint(len(WORDS), (3,), generator=generator("words", "prompt", number))
    return [*(_FIRST + words).tolist(), COLON]


def response_ids(
    numbers: Sequence[int], *, mode: float = TYPICAL, sigma: float = SPREAD
) -> list[list[int]]:
    """The one response that the corpus has to each prompt, its end of sequence included.

    Args:
        numbers: prompts, by number.
        mode: of the length, in tokens.
        sigma: see ``length_probs``.
    """
    if not numbers:
        return []
    draws = uniforms([("words", "response", n) for n in numbers], LONGEST)
    lengths = 1 + _invert(length_probs(mode=mode, sigma=sigma).cumsum(0), draws[:, 0])
    topics = torch.tensor([topic_of(prompt_ids(n)) for n in numbers])
    table = transition_probs().cumsum(-1)
    words = torch.full((len(numbers), LONGEST), END)
    before = torch.full((len(numbers),), COLON)
    for place in range(LONGEST - 1):
        before = _invert(table[topics, before], draws[:, place + 1])
        words[:, place] = before
    rows = words.tolist()
    return [[*row[: n - 1], END] for row, n in zip(rows, lengths.tolist(), strict=True)]


def text_of(ids: Sequence[int]) -> str:
    """Words with spaces between, without special tokens other than the colon."""
    return " ".join(VOCABULARY[i] for i in ids if i >= COLON)


def _invert(cumulative: Tensor, draws: Tensor) -> Tensor:
    """Index drawn by each uniform number: the first whose cumulative probability exceeds it."""
    index = torch.searchsorted(
        cumulative.expand(len(draws), -1).contiguous(), draws[:, None].contiguous(), right=True
    )[:, 0]
    return index.clamp(max=cumulative.shape[-1] - 1)
