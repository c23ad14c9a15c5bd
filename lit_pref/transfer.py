"""From the host to a device without waiting for what the device is doing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["moved", "sent"]


def sent(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers of the host as a tensor on a device.

    ``torch.tensor(values, device="cuda")`` returns when the copy has been made, which is after
    everything that the device was asked before. From pinned memory nobody waits.

    Args:
        values: a number or nested lists of them.
        device: where they go.
        dtype: of the tensor; by default as torch infers it.
    """
    # on the host by name: Lightning makes a GPU the default device while models are configured
    return moved(torch.tensor(values, dtype=dtype, device="cpu"), device)


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device; from the host through pinned memory.

    To the host it waits: otherwise the tensor could be read before its numbers have arrived.
    """
    ahead = torch.device(device).type == "cuda" and tensor.device.type == "cpu"
    return (tensor.pin_memory() if ahead else tensor).to(device, non_blocking=ahead)
