"""Weighted means over a logging window, kept on the device until they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Window"]


class Window:
    """Sums and counts by name; the mean is over all items of the window, whatever their batch.

    A mean of micro-batch means would weigh a lone response like a full micro-batch. Here every
    item counts once. Nothing is moved to the host before ``flush``.
    """

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, weights: Tensor | None = None) -> None:
        """Add items.

        Args:
            name: glossary name of the metric.
            values: any shape; each entry is one item.
            weights: weight of each item (1 by default); items of weight 0 do not count.
        """
        # float64, so that long windows lose nothing; MPS has none
        dtype = torch.float32 if values.device.type == "mps" else torch.float64
        values = values.detach().to(dtype).reshape(-1)
        if weights is None:
            total, count = values.sum(), values.new_tensor(float(values.numel()))
        else:
            weights = weights.detach().to(dtype).reshape(-1)
            counted = weights != 0  # a NaN of weight 0 must not spoil the mean
            total = torch.where(counted, values * weights, torch.zeros_like(values)).sum()
            count = weights.sum()
        self.add_total(name, total, count)

    def add_total(self, name: str, total: Tensor, count: Tensor | float) -> None:
        """Add a sum and the number of items it is over, both scalars."""
        item = torch.stack([total.detach(), torch.as_tensor(count).to(total)])
        # One running sum, not a list to be added later: a resumed window adds in the same order.
        if name in self._totals:  # from a checkpoint it comes on the host
            item = self._totals[name].to(item.device) + item
        self._totals[name] = item

    def names(self) -> list[str]:
        """Names in the open window, sorted."""
        return sorted(self._totals)

    def flush(
        self,
        reduce: Callable[[Tensor], Tensor] = lambda x: x,
        names: Sequence[str] | None = None,
    ) -> dict[str, float]:
        """Means of the window by name; starts a new window.

        Args:
            reduce: sums a tensor over processes.
            names: names over all processes, the same list in each; this window's by default.

        Returns:
            The means; a name without any weight is left out.
        """
        names = self.names() if names is None else names
        if not names:
            return {}
        rows = _together([self._totals.get(n) for n in names])
        sums = reduce(rows).tolist()
        self._totals = {}
        return {n: s / c for n, (s, c) in zip(names, sums, strict=True) if c}

    def state(self) -> dict[str, Tensor]:
        """The open window, for checkpoints: name -> [sum, count]."""
        return dict(self._totals)

    def load(self, state: dict[str, Tensor]) -> None:
        """Inverse of ``state``."""
        self._totals = dict(state)


def _together(totals: Sequence[Tensor | None]) -> Tensor:
    """[names, 2] on one device: the accelerator, where any total is there.

    Losses live on the device, facts about the batch on the host. The host's totals go over in one
    copy, which does not wait; reading the result is then the only wait of a logging interval.

    Args:
        totals: [2] each; None for a name that this process has nothing of.
    """
    present = [t for t in totals if t is not None]
    away = [t for t in present if t.device.type != "cpu"]
    if not present:
        return torch.zeros(len(totals), 2, dtype=torch.float64)
    target = (away or present)[0]
    places: dict[torch.device, list[int]] = {}
    for place, total in enumerate(totals):
        if total is not None:
            places.setdefault(total.device, []).append(place)
    out = target.new_zeros(len(totals), 2)
    for device, some in places.items():
        rows = torch.stack([t for t in (totals[i] for i in some) if t is not None])
        index = torch.tensor(some).to(target.device, non_blocking=True)
        if device != target.device:
            rows = rows.to(target.dtype).to(target.device, non_blocking=True)
        out.index_copy_(0, index, rows.to(target.dtype))
    return out
