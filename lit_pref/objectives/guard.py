"""Steps whose gradient is not a finite number are left out, counted, and in the end an error."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor

from lit_pref.metrics.window import Window

__all__ = ["NonFiniteGradients", "StepGuard"]

log = logging.getLogger(__name__)


class NonFiniteGradients(RuntimeError):
    """Too many steps in a row had a gradient that is not a finite number."""


class StepGuard:
    """Lets an optimizer step where the gradient is finite, and counts where it is not.

    On an accelerator the host runs ahead, and asking whether a norm is finite would make it wait
    in every step. Fused Adam takes the answer as a tensor, as gradient scalers give it, and then
    leaves weights and moments alone by itself; the counts stay on the device until ``read``. For
    other optimizers the host asks.

    Args:
        allowed: so many steps in a row may be left out; one more is an error.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.skipped = 0
        """Steps left out so far, as of the last ``read``."""
        self.in_a_row = 0
        """Those at the end of the run so far."""
        self._counts: Tensor | None = None  # [left out since read, in a row, most in a row]
        self._most = 0  # that a checkpoint has read, and nobody has looked at

    def step(self, optimizer: Any, norm: Tensor, window: Window, *, at: int) -> None:
        """One step of the optimizer, if the gradient's norm is finite.

        Args:
            optimizer: Lightning's, around the one of torch, or that one.
            norm: scalar.
            window: where finite norms go.
            at: number of the step, for the log.

        Raises:
            NonFiniteGradients: one more than allowed was left out.
        """
        inner = getattr(optimizer, "optimizer", optimizer)
        if self._ahead(norm) and _takes_the_answer(inner):
            finite = torch.isfinite(norm).float()
            self._step_ahead(optimizer, inner, 1 - finite)
            window.add("grad_norm", norm, finite)
            return
        value = float(norm)
        taken = math.isfinite(value)
        if taken:
            window.add_number("grad_norm", value)
        else:
            # Without gradients an optimizer leaves weights and moments alone; the step counts.
            optimizer.zero_grad(set_to_none=True)
        optimizer.step()
        self._add(int(not taken), 0 if taken else self.in_a_row + 1, at=at)
        self._check(self.in_a_row)

    def read(self) -> None:
        """Bring counts to the host; the device is waited for.

        Raises:
            NonFiniteGradients: since the last call, more in a row than allowed were left out.
        """
        most, self._most = max(self._most, self._read()), 0
        self._check(most)

    def state(self) -> list[int]:
        """[steps left out, the last of them in a row], for checkpoints."""
        self._most = max(self._most, self._read())
        return [self.skipped, self.in_a_row]

    def load(self, state: list[int]) -> None:
        """Inverse of ``state``."""
        (self.skipped, self.in_a_row), self._counts = state, None

    def _ahead(self, norm: Tensor) -> bool:
        """Whether the host would wait for the norm."""
        return norm.device.type != "cpu"

    def _step_ahead(self, optimizer: Any, inner: Any, bad: Tensor) -> None:
        inner.found_inf = bad
        try:
            optimizer.step()
        finally:
            del inner.found_inf
        if self._counts is None:
            self._counts = torch.full((3,), float(self.in_a_row), device=bad.device)
            self._counts[0] = 0
        skipped, row, most = self._counts.unbind()
        row = (row + 1) * bad
        self._counts = torch.stack([skipped + bad, row, torch.maximum(most, row)])

    def _read(self) -> int:
        if self._counts is None:
            return self.in_a_row
        skipped, row, most = (int(n) for n in self._counts.tolist())
        self._counts = None
        self._add(skipped, row)
        return most

    def _add(self, skipped: int, in_a_row: int, *, at: int | None = None) -> None:
        self.skipped += skipped
        self.in_a_row = in_a_row
        if skipped:
            log.warning(
                "%s skipped: the gradient is not finite (%d skipped so far)",
                f"{skipped} of the steps since the last row of metrics.csv"
                if at is None
                else f"step {at}",
                self.skipped,
            )

    def _check(self, in_a_row: int) -> None:
        if in_a_row > self.allowed:
            raise NonFiniteGradients(
                f"{in_a_row} steps in a row had a gradient that is not finite "
                f"(allowed: optimizer.max_skipped={self.allowed}). Lower optimizer.lr, set "
                "optimizer.clip_norm, or use precision=32-true."
            )


def _takes_the_answer(optimizer: Any) -> bool:
    """Whether it leaves out a step by a tensor, ``found_inf``."""
    groups = optimizer.param_groups
    return type(optimizer) in (torch.optim.AdamW, torch.optim.Adam) and all(
        group.get("fused") for group in groups
    )
