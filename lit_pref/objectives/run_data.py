"""What objectives read of the DataModule of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import lightning as L

__all__ = ["RunData", "data_of"]


class RunData(Protocol):
    """The part of ``lit_pref.data.RoundDataModule`` that objectives know."""

    batch_size: int
    micro_batch_tokens: int | None

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        ...

    def progress(self) -> dict[str, float]:
        """The first columns of every line of metrics."""
        ...


def data_of(trainer: L.Trainer) -> RunData:
    """The DataModule that a trainer was given."""
    return trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning, not declared
