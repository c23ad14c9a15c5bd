"""torchmetrics classes of the instruments: sums that add up over batches and processes.

Each ``update`` takes what one batch says, ``compute`` returns a dictionary of named numbers. States
are float64 sums, reduced by torchmetrics where processes hold different data. Where every process
holds the whole already (lit_pref's own evaluations do), pass ``sync_on_compute=False``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_pref.errors import Refusal
from lit_pref.functional.instruments import distinct_n, length_controlled, quantile
from lit_pref.functional.statistics import Z95, wilson_interval

__all__ = [
    "Coverage",
    "Displacement",
    "DistinctN",
    "LengthStatistics",
    "MeanInterval",
    "SequenceKL",
    "WinRate",
]

FALLEN = 1e-4
"""Nats by which a log-prob must have fallen to count: less is float noise of a forward."""


def _wide(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64).detach().reshape(-1)


class MeanInterval(Metric):
    r"""Mean of independent numbers with a normal 95 % interval.

    .. math:: \bar x \pm 1.96\, s / \sqrt n

    Args:
        name: of the mean in ``compute``; the ends are ``<name>_low`` and ``<name>_high``.
        **kwargs: see ``torchmetrics.Metric``.

    >>> metric = MeanInterval("x")
    >>> metric.update([1.0, 3.0])
    >>> {k: round(v, 2) for k, v in metric.compute().items()}
    {'x': 2.0, 'x_low': 0.04, 'x_high': 3.96}
    """

    full_state_update = False

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, values: Any) -> None:
        """Add independent numbers (means over prompts, where a prompt has several responses)."""
        self.values.append(_wide(values))  # type: ignore[union-attr, operator]

    def compute(self) -> dict[str, float]:
        """Mean and interval; a point where there is one number, nothing where there is none."""
        values = _joined(self.values)
        if not len(values):
            return {}
        mean = float(values.mean())
        half = Z95 * float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        return {
            self.name: mean,
            f"{self.name}_low": mean - half,
            f"{self.name}_high": mean + half,
        }


def _joined(parts: Any) -> Tensor:
    """One tensor of a list state (torchmetrics makes it one after a reduction)."""
    if isinstance(parts, Tensor):
        return parts
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


class SequenceKL(MeanInterval):
    r"""Monte-Carlo KL divergence between two sequence models, in nats per response.

    .. math:: \mathrm{KL}(p \| q) = E_{y \sim p}[\log p(y) - \log q(y)]

    Unbiased for plain samples of p (temperature 1, all tokens). With p the policy and q the
    reference it is the reverse KL, with p the reference and q the policy the forward KL.

    >>> metric = SequenceKL("kl")
    >>> metric.update([-1.0, -2.0], [-2.0, -2.0])
    >>> metric.compute()["kl"]
    0.5
    """

    def update(self, logps: Any, others: Any) -> None:  # type: ignore[override]
        """Add samples of p.

        Args:
            logps: [B] log-prob of each sampled response under p.
            others: [B] under q.
        """
        super().update(_wide(logps) - _wide(others))


class Displacement(Metric):
    """How the log-probs of fixed pairs moved: does the chosen fall together with the rejected?

    (Likelihood displacement, arXiv 2410.08847; the squeezing effect, arXiv 2407.10490.)

    >>> metric = Displacement()
    >>> metric.update(chosen=[-1.0, 2.0], rejected=[-3.0, -1.0])
    >>> metric.compute()
    {'chosen_change': 0.5, 'rejected_change': -2.0, 'chosen_fell': 0.5}
    """

    full_state_update = False
    sums: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("sums", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, *, chosen: Any, rejected: Any) -> None:
        """Add pairs.

        Args:
            chosen: [N] log-prob of each chosen response now minus that under the reference.
            rejected: [N] the same of the rejected.
        """
        up, down = _wide(chosen), _wide(rejected)
        fell = (up < -FALLEN).double().sum()
        count = torch.tensor(float(len(up)), dtype=torch.float64)
        self.sums += torch.stack([up.sum(), down.sum(), fell, count]).to(self.sums)

    def compute(self) -> dict[str, float]:
        """``chosen_change`` and ``rejected_change`` in nats per response, share ``chosen_fell``."""
        *totals, count = self.sums.tolist()
        if not count:
            return {}
        names = ("chosen_change", "rejected_change", "chosen_fell")
        return {n: t / count for n, t in zip(names, totals, strict=True)}


class Coverage(Metric):
    """Share of responses whose mean log-prob per token is at least a floor.

    Args:
        floor: nats per token, below 0.
        **kwargs: see ``torchmetrics.Metric``.

    >>> metric = Coverage(floor=-2.0)
    >>> metric.update([-3.0, -30.0], [3, 3])
    >>> metric.compute()
    {'coverage': 0.5}
    """

    full_state_update = False
    sums: Tensor

    def __init__(self, *, floor: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.floor = float(floor)
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logps: Any, lengths: Any) -> None:
        """Add responses.

        Args:
            logps: [B] log-prob of each response.
            lengths: [B] its tokens.
        """
        mean = _wide(logps) / _wide(lengths).clamp(min=1)
        covered = (mean >= self.floor).double().sum()
        count = torch.tensor(float(len(mean)), dtype=torch.float64)
        self.sums += torch.stack([covered, count]).to(self.sums)

    def compute(self) -> dict[str, float]:
        """``coverage``, nothing without a response."""
        covered, count = self.sums.tolist()
        return {"coverage": covered / count} if count else {}


class DistinctN(Metric):
    """Distinct n-grams over all n-grams (arXiv 1510.03055), and distinct responses.

    It falls as more responses are added: compare equal numbers of responses only.

    Args:
        n: the lengths of n-grams.
        **kwargs: see ``torchmetrics.Metric``.

    >>> metric = DistinctN(n=[1])
    >>> metric.update([[1, 1], [1, 2]])
    >>> metric.compute()
    {'distinct_responses': 1.0, 'distinct_1': 0.5}
    """

    full_state_update = False

    def __init__(self, *, n: Sequence[int] = (1, 2), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not n or any(not isinstance(k, int) or k < 1 for k in n):
            raise Refusal(f"distinct-n needs whole numbers from 1, got {list(n)}; usual: [1, 2]")
        self.n = tuple(n)
        self.add_state("tokens", default=[], dist_reduce_fx="cat")
        self.add_state("lengths", default=[], dist_reduce_fx="cat")

    def update(self, responses: Sequence[Sequence[int]]) -> None:
        """Add responses as token ids."""
        flat = [t for ids in responses for t in ids]
        self.tokens.append(torch.tensor(flat, dtype=torch.long))  # type: ignore[union-attr, operator]
        self.lengths.append(torch.tensor([len(r) for r in responses], dtype=torch.long))  # type: ignore[union-attr, operator]

    def compute(self) -> dict[str, float]:
        """``distinct_responses`` and ``distinct_<n>``; shares."""
        lengths = _joined(self.lengths).long().tolist()
        flat = _joined(self.tokens).long()
        responses = [part.tolist() for part in flat.split(lengths)] if lengths else []
        if not responses:
            return {}
        out = {"distinct_responses": len({tuple(r) for r in responses}) / len(responses)}
        for n in self.n:
            different, every = distinct_n(responses, n)
            if every:
                out[f"distinct_{n}"] = different / every
        return out


class LengthStatistics(Metric):
    """Spread of response lengths in tokens.

    >>> metric = LengthStatistics()
    >>> metric.update([1, 3])
    >>> metric.compute()
    {'length_std': 1.0, 'length_p10': 1.2, 'length_p90': 2.8}
    """

    full_state_update = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("lengths", default=[], dist_reduce_fx="cat")

    def update(self, lengths: Any) -> None:
        """Add lengths, in tokens."""
        self.lengths.append(_wide(lengths))  # type: ignore[union-attr, operator]

    def compute(self) -> dict[str, float]:
        """Standard deviation, 10 % and 90 % quantile."""
        lengths = _joined(self.lengths)
        if not len(lengths):
            return {}
        values = lengths.tolist()
        return {
            "length_std": float(lengths.std(correction=0)),
            "length_p10": round(quantile(values, 0.1), 9),
            "length_p90": round(quantile(values, 0.9), 9),
        }


class WinRate(Metric):
    """Share of prompts that one side wins, with intervals, as it is and at equal length.

    One item is one prompt: the share of comparisons of its responses that are won, ties half. The
    interval of the plain rate is Wilson's; see ``functional.instruments.length_controlled`` for
    the other.

    Args:
        name: of the rate in ``compute``.
        **kwargs: see ``torchmetrics.Metric``.
    """

    full_state_update = False

    def __init__(self, name: str = "win_rate", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.add_state("wins", default=[], dist_reduce_fx="cat")
        self.add_state("differences", default=[], dist_reduce_fx="cat")

    def update(self, wins: Any, length_differences: Any) -> None:
        """Add prompts.

        Args:
            wins: [P] share in [0, 1] of comparisons that are won.
            length_differences: [P] mean length of our responses minus that of theirs, in tokens.
        """
        self.wins.append(_wide(wins))  # type: ignore[union-attr, operator]
        self.differences.append(_wide(length_differences))  # type: ignore[union-attr, operator]

    def compute(self) -> dict[str, float]:
        """``<name>`` and ``<name>_lc`` (at equal length), each with ``_low`` and ``_high``."""
        wins, differences = _joined(self.wins).tolist(), _joined(self.differences).tolist()
        if not wins:
            return {}
        rate = sum(wins) / len(wins)
        low, high = wilson_interval(rate, len(wins))
        fair, fair_low, fair_high = length_controlled(wins, differences)
        return {
            self.name: rate,
            f"{self.name}_low": low,
            f"{self.name}_high": high,
            f"{self.name}_lc": fair,
            f"{self.name}_lc_low": fair_low,
            f"{self.name}_lc_high": fair_high,
        }
