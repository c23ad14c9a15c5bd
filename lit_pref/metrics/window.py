"""Weighted means over a logging window, kept on the device until they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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
        self._numbers: dict[str, tuple[float, float]] = {}

    def add(self, name: str, values: Tensor, weights: Tensor | None = None) -> None:
        """Add items.

        Args:
            name: glossary name of the metric.
            values: any shape; each entry is one item.
            weights: weight of each item (1 by default); items of weight 0 do not count.
        """
        self.add_all({name: values}, weights)

    def add_all(self, items: Mapping[str, Tensor], weights: Tensor | None = None) -> None:
        """Add items of several metrics that share their weights: few operations for all.

        Args:
            items: by glossary name; all of one device, of one shape or one item.
            weights: as in ``add``.
        """
        dtype = _wide(next(iter(items.values())))
        with torch.no_grad():
            rows = torch.broadcast_tensors(*(v.reshape(-1).to(dtype) for v in items.values()))
            values = torch.stack(rows)
            if weights is None:
                count = values.new_tensor(float(values.shape[1]))
            else:
                weights = weights.reshape(-1).to(values)
                counted = weights != 0  # a NaN of weight 0 must not spoil the mean
                values = torch.where(counted, values * weights, 0.0)
                count = weights.sum()
            sums = values.sum(1)
            self._add_rows(list(items), torch.stack([sums, count.expand_as(sums)], dim=1))

    def add_total(self, name: str, total: Tensor, count: Tensor | float) -> None:
        """Add a sum and the number of items it is over, both scalars."""
        total = total.detach().to(_wide(total))
        self._add_rows([name], torch.stack([total, torch.as_tensor(count).to(total)])[None])

    def _add_rows(self, names: Sequence[str], rows: Tensor) -> None:
        """Add [names, 2] sums and counts."""
        # One running sum, not a list to be added later: a resumed window adds in the same order.
        if any(n in self._totals for n in names):  # from a checkpoint they come on the host
            nothing = rows.new_zeros(2)
            before = [self._totals.get(n, nothing).to(rows.device) for n in names]
            rows = torch.stack(before) + rows
        self._totals.update(zip(names, rows.unbind(), strict=True))

    def add_number(self, name: str, value: float) -> None:
        """Add one item that is known on the host; no tensor is made for it before ``flush``."""
        if name in self._totals:  # from a checkpoint
            total, count = self._totals.pop(name).tolist()
        else:
            total, count = self._numbers.get(name, (0.0, 0.0))
        self._numbers[name] = (total + value, count + 1.0)

    def names(self) -> list[str]:
        """Names in the open window, sorted."""
        return sorted({*self._totals, *self._numbers})

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
        totals = self.state()
        sums = reduce(_together([totals.get(n) for n in names])).tolist()
        self._totals, self._numbers = {}, {}
        return {n: s / c for n, (s, c) in zip(names, sums, strict=True) if c}

    def state(self) -> dict[str, Tensor]:
        """The open window, for checkpoints: name -> [sum, count]."""
        numbers = torch.tensor(list(self._numbers.values()), dtype=torch.float64)
        return {**self._totals, **dict(zip(self._numbers, numbers, strict=True))}

    def load(self, state: dict[str, Tensor]) -> None:
        """Inverse of ``state``."""
        self._totals, self._numbers = dict(state), {}


def _wide(values: Tensor) -> torch.dtype:
    """float64, so that long windows lose nothing and all processes hold the same; MPS has none."""
    return torch.float32 if values.device.type == "mps" else torch.float64


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
