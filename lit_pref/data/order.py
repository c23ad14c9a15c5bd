"""Which groups of a round are in which batch of a pass."""

from __future__ import annotations

from lit_pref.functional.rng import Order, permutation

__all__ = ["PassOrder"]


class PassOrder:
    """The batches of a pass over a round that has a sampled and a stored part.

    Each part is permuted by itself, and each batch has the same share of both. So a round of one
    part is in the order that it would have if there were no other.

    Args:
        seed: of the permutations; another one for every round and pass.
        order: ``fixed``: every pass takes the groups in the order of the round.
    """

    def __init__(self, seed: int, *, order: Order = "shuffled") -> None:
        self.seed, self.order = seed, order
        self._made: tuple[tuple[int, ...], list[list[int]]] | None = None

    def batch(
        self, round: int, number: int, position: int, *, fresh: int, stored: int, batches: int
    ) -> list[int]:
        """Slots of a batch, ascending.

        Args:
            round: index of the round.
            number: of the pass.
            position: of the batch in the pass.
            fresh: groups of the first part.
            stored: groups of the second part.
            batches: batches of a pass; divides both.
        """
        key = (round, number, fresh, stored)
        if self._made is None or self._made[0] != key:  # once a pass, rounds may be large
            coordinates = (self.seed, "order", round, number)
            first, second = (
                list(range(size)) if self.order == "fixed" else permutation(size, *coordinates)
                for size in (fresh, stored)
            )
            self._made = (key, [first, [fresh + slot for slot in second]])
        out: list[int] = []
        for slots in self._made[1]:
            share = len(slots) // batches
            out += slots[position * share : (position + 1) * share]
        return sorted(out)
