"""A decoding step recorded once and replayed, on a GPU.

A step over a few rows is hundreds of small kernels, and launching them takes longer than running
them. A CUDA graph launches all at once; its shapes and addresses are fixed. So the step is over
all slots of the cache with all their room, rows that leave go on unread until the cache moves or
grows, and then the step is recorded again.

Every recording is replayed and compared with the step that it recorded before it is used. What
cannot be recorded, or comes out differently, is said once and decoded as before.

Shapes: ``R`` rows, ``S`` slots, ``V`` vocabulary.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lit_pref.engine.kv_cache import SharedCache
from lit_pref.engine.places import Places

__all__ = ["GRAPHS", "LEAST_TOKENS", "Graph", "RecordedStep", "recorded_steps"]

log = logging.getLogger(__name__)

LEAST_TOKENS = 16
"""Shorter responses do not pay for the recording, which takes as long as a few steps."""


class Graph(Protocol):
    """What a device offers to record what it is asked to do."""

    def record(self, run: Callable[[], Tensor]) -> Tensor:
        """Record what ``run`` asks of the device; its result is filled by ``replay``."""
        ...

    def replay(self) -> None:
        """All of it again, with what its inputs hold now."""
        ...


class CudaGraph:
    """``torch.cuda.CUDAGraph``; recordings of a decoding batch follow each other in one pool."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._graph: torch.cuda.CUDAGraph | None = None

    def record(self, run: Callable[[], Tensor]) -> Tensor:
        self._graph = None  # its memory is the next one's
        graph = torch.cuda.CUDAGraph()
        # Rewards of finished groups may be computed meanwhile: what other threads do is theirs.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            out = run()
        self._graph = graph
        return out

    def replay(self) -> None:
        assert self._graph is not None
        self._graph.replay()


GRAPHS: dict[str, Callable[[], Graph]] = {"cuda": CudaGraph}
"""By kind of device."""


@contextlib.contextmanager
def recorded_steps(policy: Any, *, wanted: bool, tokens: int) -> Iterator[None]:
    """A policy records its decoding steps inside this block, where its device can.

    Nothing is done for policies that have no ``record_steps`` (only shared prompts are recorded),
    or whose weights are on several devices.

    Args:
        policy: any policy.
        wanted: whether at all.
        tokens: steps that will be made.
    """
    can = wanted and tokens >= LEAST_TOKENS and isinstance(policy, nn.Module)
    if not can or not hasattr(policy, "record_steps"):
        yield
        return
    devices = {p.device for p in policy.parameters()}
    before = policy.record_steps
    policy.record_steps = len(devices) == 1 and devices.pop().type in GRAPHS
    try:
        yield
    finally:
        policy.record_steps = before


class RecordedStep:
    """The step of one decoding batch.

    Args:
        device: where its cache is.
        on_failure: called when a recording fails, so that the next batch need not try.
    """

    def __init__(self, device: torch.device, on_failure: Callable[[], None] = lambda: None) -> None:
        self.device, self.on_failure = device, on_failure
        self.can = True
        """Until a recording fails."""
        self.recordings = 0
        self._graph: Graph | None = None
        self._of = -1
        self._places: Places
        self._tokens: Tensor
        self._logits: Tensor

    def __call__(
        self,
        cache: SharedCache,
        forward: Callable[[Tensor, Tensor], Tensor],
        token_ids: Tensor,
    ) -> Tensor | None:
        """One more token of each row.

        Args:
            cache: the same in every call.
            forward: [S, V] logits of (token ids [S], positions [S]); calls the cache.
            token_ids: [R].

        Returns:
            [R, V] logits; None where steps cannot be recorded (nothing has happened then).
        """
        if not self.can:
            return None
        cache.make_room()
        slots = cache.slots(self.device)
        if self._of != cache.changes:
            reason = self._record(cache, forward, token_ids, slots)
            if reason is not None:
                log.info("decoding steps are not recorded: %s", reason)
                self.can, self._graph = False, None
                self.on_failure()
                cache.forget_places()
                return None
        else:
            self._put(token_ids, slots)
            assert self._graph is not None
            self._graph.replay()
        cache.end_fixed(self._places)
        # A copy: the next step writes over it.
        return self._logits.clone() if slots is None else self._logits[slots]

    def _put(self, token_ids: Tensor, slots: Tensor | None) -> None:
        if slots is None:
            self._tokens.copy_(token_ids)
        else:
            self._tokens.index_copy_(0, slots, token_ids)

    def _record(
        self,
        cache: SharedCache,
        forward: Callable[[Tensor, Tensor], Tensor],
        token_ids: Tensor,
        slots: Tensor | None,
    ) -> str | None:
        """Record the present step; what stands against it, or None. It can be made again after."""
        self._places = places = cache.fixed_places(self.device)
        self._tokens = token_ids.new_zeros(len(places.columns))
        self._put(token_ids, slots)

        def run() -> Tensor:
            return forward(self._tokens, cache.begin_at(places))

        try:
            right = run().clone()  # first, so that what is made at first use is there
            graph = self._graph = self._graph or GRAPHS[self.device.type]()
            self._logits = graph.record(run)
            self._logits.zero_()
            graph.replay()
            live = slice(None) if slots is None else slots
            found, right = self._logits[live].double(), right[live].double()
            gap = float((found - right).norm() / right.norm())
        except Exception as error:  # drivers and models refuse in many ways
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if not gap <= 16 * torch.finfo(self._logits.dtype).eps:
            return f"a replay differs by {gap:.2g}"
        self._of, self.recordings = cache.changes, self.recordings + 1
        return None
