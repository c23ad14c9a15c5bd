"""One persistent loader over the round buffer (the only design of five that resumes exactly)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lit_pref.types import Batch

if TYPE_CHECKING:
    from lit_pref.data.datamodule import RoundDataModule

__all__ = ["RoundLoader"]


class RoundLoader:
    """Yields the batches of the present pass; Lightning sees the same object in every epoch.

    Iterating is pure: Lightning asks for an iterator up to three times an epoch. The position in
    a checkpoint is what training has *committed*, tagged with (round, pass); a position of
    another pass is stale and ignored.
    """

    def __init__(self, data: RoundDataModule) -> None:
        self.data = data
        self.committed = 0
        self._restored: tuple[list[int], int] | None = None

    def __len__(self) -> int:
        return self.data.batches_per_pass

    def __iter__(self) -> Iterator[Batch]:
        return self._batches()

    def _batches(self) -> Iterator[Batch]:
        for i in range(self.start(), len(self)):
            yield self.data.batch(i)

    def start(self) -> int:
        """First batch of the present pass that was not trained on yet."""
        if self._restored is not None:
            tag, position = self._restored
            if tag == self.data.tag:
                return position
        return 0

    def commit(self, position: int) -> None:
        """Training has finished ``position`` batches of the present pass."""
        self.committed = position

    def state_dict(self) -> dict[str, Any]:
        return {"tag": self.data.tag, "position": self.committed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restored = (list(state["tag"]), int(state["position"]))
        self.committed = int(state["position"])
