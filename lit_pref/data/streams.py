"""Which prompt or stored group is in which slot of which round: no cursor is kept anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lit_pref.functional.rng import Order, stream_slice
from lit_pref.types import Prompt

__all__ = ["PromptStream"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptStream:
    """Prompts of rounds: pieces of an endless stream of permutations.

    Attributes:
        prompts: the training prompts.
        seed: of the permutations.
        order: ``shuffled`` (without replacement across rounds) or ``fixed`` (as they come).
    """

    prompts: Sequence[Prompt]
    seed: int
    order: Order = "shuffled"

    def round(self, index: int, count: int) -> list[Prompt]:
        """The ``count`` prompts of round ``index``."""
        return self._slice(index * count, count, "prompts")

    def refill(self, index: int, limit: int, start: int, count: int) -> list[Prompt]:
        """``count`` of the ``limit`` prompts that may refill round ``index``, from ``start``.

        They come from permutations of their own, so that refilling never shifts the prompts of
        later rounds.
        """
        return self._slice(index * limit + start, count, "refill")

    def _slice(self, start: int, count: int, purpose: str) -> list[Prompt]:
        found = stream_slice(len(self.prompts), start, count, self.seed, purpose, order=self.order)
        return [self.prompts[item] for item, _ in found]
