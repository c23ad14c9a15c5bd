"""Memory of the host that sampling has freed."""

from __future__ import annotations

import ctypes
import sys

import lightning as L

__all__ = ["ReturnFreedMemory", "return_freed_memory"]


def return_freed_memory() -> bool:
    """Give freed memory back to the operating system; True if there was any.

    The allocator of GNU systems keeps what was freed between pieces that are still used. Sampling
    leaves many such gaps, which training, with other sizes, does not fill. Elsewhere nothing is
    done.
    """
    if not sys.platform.startswith("linux"):
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))


class ReturnFreedMemory(L.Callback):
    """Before each pass, which is after a round was sampled or the policy was evaluated."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        return_freed_memory()
