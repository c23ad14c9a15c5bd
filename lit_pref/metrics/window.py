"""Weighted means over a logging window, kept on the device until they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lit_pref.transfer import moved

__all__ = ["Window"]


class Window:
    """Sums and counts by name; the mean is over all items of the window, whatever their batch.

    A mean of micro-batch means would weigh a lone response like a full micro-batch. Here every
    item counts once. Nothing is moved to the host before ``flush``.
    """

    def __init__(self) -> None:
        # [names, 2] sums and counts of metrics that are added together, by their names
        self._totals: dict[tuple[str, ...], Tensor] = {}
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
        with torch.no_grad():
            rows = [v.detach().reshape(-1) for v in items.values()]
            exact = _exact(rows[0])
            longest = max(len(r) for r in rows)
            values = torch.stack([r.to(exact).expand(longest) for r in rows])
            if weights is None:  # filled on the device: a number of the host would have to wait
                sums, count = values.sum(1), values.new_full((), longest)
            else:
                weights = weights.reshape(-1).to(values)
                # a NaN of weight 0 must not spoil the mean
                sums = torch.where(weights != 0, values * weights, 0.0).sum(1)
                count = weights.sum()
            self._add_rows(tuple(items), torch.stack([sums, count.expand_as(sums)], dim=1))

    def add_total(self, name: str, total: Tensor, count: Tensor | float) -> None:
        """Add a sum and the number of items it is over, both scalars."""
        total = total.detach().to(_exact(total))
        if isinstance(count, Tensor):
            count = count.to(total)
        else:
            count = torch.full_like(total, count)
        self._add_rows((name,), torch.stack([total, count])[None])

    def _add_rows(self, names: tuple[str, ...], rows: Tensor) -> None:
        """Add [names, 2] sums and counts."""
        # One running sum, not a list to be added later: a resumed window adds in the same order.
        before = self._totals.get(names)  # from a checkpoint it comes on the host
        self._totals[names] = rows if before is None else before.to(rows.device) + rows

    def add_number(self, name: str, value: float) -> None:
        """Add one item that is known on the host; no tensor is made for it before ``flush``."""
        if (name,) in self._totals:  # from a checkpoint
            total, count = self._totals.pop((name,))[0].tolist()
        else:
            total, count = self._numbers.get(name, (0.0, 0.0))
        self._numbers[name] = (total + value, count + 1.0)

    def names(self) -> list[str]:
        """Names in the open window, sorted."""
        return sorted({*(n for group in self._totals for n in group), *self._numbers})

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
        sums = reduce(self._together(names)).tolist()
        self._totals, self._numbers = {}, {}
        return {n: s / c for n, (s, c) in zip(names, sums, strict=True) if c}

    def _together(self, names: Sequence[str]) -> Tensor:
        """[names, 2] on one device: the accelerator, where any total is there.

        Losses live on the device, facts about the batch on the host. The host's totals go over in
        one copy, which does not wait; reading the result is the only wait of a logging interval.
        """
        sums = {name: [0.0, 0.0] for name in names}
        for name, (total, count) in self._numbers.items():
            sums[name] = [total, count]
        away: list[tuple[tuple[str, ...], Tensor]] = []
        for group, rows in self._totals.items():
            if rows.device.type != "cpu":
                away.append((group, rows))
                continue
            for name, (total, count) in zip(group, rows.tolist(), strict=True):
                sums[name][0] += total
                sums[name][1] += count
        here = torch.tensor([sums[name] for name in names], dtype=torch.float64)
        if not away:
            return here
        places = {name: place for place, name in enumerate(names)}
        rows = torch.cat([rows for _, rows in away])
        index = torch.tensor([places[n] for group, _ in away for n in group])
        out = moved(here.to(rows.dtype), rows.device)
        return out.index_add(0, moved(index, rows.device), rows)

    def state(self) -> dict[str, Tensor]:
        """The open window, for checkpoints: names, one a line -> [names, 2] sums and counts."""
        numbers = torch.tensor(list(self._numbers.values()), dtype=torch.float64)
        totals = {"\n".join(group): rows for group, rows in self._totals.items()}
        return {**totals, **{n: row[None] for n, row in zip(self._numbers, numbers, strict=True)}}

    def load(self, state: dict[str, Tensor]) -> None:
        """Inverse of ``state``."""
        totals = {tuple(names.split("\n")): rows.reshape(-1, 2) for names, rows in state.items()}
        self._totals, self._numbers = totals, {}


def _exact(values: Tensor) -> torch.dtype:
    """float64, so that long windows lose nothing and all processes hold the same; MPS has none."""
    return torch.float32 if values.device.type == "mps" else torch.float64
