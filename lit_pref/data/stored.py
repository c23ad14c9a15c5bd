"""Groups at rest: which rows a round has, what they hold, and how a checkpoint names them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lit_pref.formats import Facts, facts_of
from lit_pref.functional.rng import Order, stream_slice
from lit_pref.types import Group, Refusal

__all__ = ["StoredGroups", "place_of"]


class StoredGroups:
    """A set of groups that rounds take rows of.

    Args:
        groups: the groups; None where they are sampled before the first round.
        size: number of groups.
        seed: of the permutations.
        order: ``shuffled``: every pass over the set in an order of its own; ``fixed``: as stored.
        held_out: groups that are never trained on.
    """

    def __init__(
        self,
        groups: Sequence[Group] | None,
        *,
        size: int,
        seed: int,
        order: Order = "shuffled",
        held_out: Sequence[Group] = (),
    ) -> None:
        self.groups, self.size = groups, size
        self.seed, self.order = seed, order
        self.held_out: Sequence[Group] = held_out
        self.sampled = groups is None

    @cached_property
    def facts(self) -> Facts:
        """What objectives may need to know; of groups in memory by one pass over them."""
        assert self.groups is not None
        return facts_of(self.groups)

    # ------------------------------------------------------------------ rounds

    def rows(self, index: int, count: int) -> list[tuple[int, int]]:
        """(row, how often it came up before) of the ``count`` slots of round ``index``."""
        key = (self.seed, "rows")
        return stream_slice(self.size, index * count, count, *key, order=self.order)

    def take(self, rows: Sequence[int]) -> list[Group]:
        """The groups of some rows."""
        assert self.groups is not None
        return [self.groups[row] for row in rows]

    # ------------------------------------------------------------------ checkpoints

    def state(self, rows: Sequence[int], groups: Sequence[Group]) -> dict[str, Any]:
        """Row ids, and a digest of what they hold; whole groups only where no file has them.

        Args:
            rows: of a round.
            groups: what these rows hold.
        """
        state: dict[str, Any] = {"rows": list(rows), "digest": _digest(groups)}
        if self.sampled:
            state["stored"] = [g.state() for g in self.groups or ()]
            state["held_out"] = [g.state() for g in self.held_out]
        return state

    def restore(self, state: dict[str, Any], rows: Sequence[int]) -> list[Group]:
        """The groups of the rows of a checkpoint.

        Args:
            state: what ``state`` returned.
            rows: the rows that this run would take.

        Raises:
            Refusal: the set is not the one that the checkpoint was written for.
        """
        if "stored" in state:
            self.groups = [Group.from_state(g) for g in state["stored"]]
            self.held_out = [Group.from_state(g) for g in state["held_out"]]
        same = state["rows"] == list(rows)
        groups = self.take(rows) if same else []
        if not same or state["digest"] != _digest(groups):
            raise Refusal(
                "the checkpoint was written for other stored data (its rows differ); resume with "
                "the same file, seed and data.prompts_per_round"
            )
        return groups


def place_of(group: Group) -> str:
    """Where a stored group can be found, for messages."""
    file, row = group.prompt.file, group.prompt.row
    if group.origin is not None:
        file, row = group.origin["file"], group.origin["row"]
    return f"prompt {group.prompt.id}" if file is None else f"{file}, line {row}"


def _digest(groups: Sequence[Group]) -> str:
    """The same for the same tokens, rewards, orders and verdicts, whatever file they lie in."""
    out = hashlib.blake2b(digest_size=16)
    for group in groups:
        out.update(repr(group.prompt.ids).encode())
        for r in group.responses:
            out.update(repr((r.ids, r.reward, r.label, r.rank)).encode())
        if group.comparisons is not None:
            out.update(repr(group.comparisons).encode())
    return out.hexdigest()
