"""Freed memory goes back to the operating system."""

import sys

import pytest
import torch

from lit_pref.callbacks.memory import return_freed_memory


def resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator of GNU systems")
def test_gaps_between_living_pieces_are_returned():
    return_freed_memory()
    before = resident()
    pieces = [torch.ones(4_000) for _ in range(8_000)]  # 128 MB in pieces far below a mapping
    full = resident()
    assert full - before > 100e6
    pieces = pieces[::2]  # every second one stays: nothing at the end of the heap is free
    held = resident()
    pieces = pieces[::50]
    return_freed_memory()
    assert held - resident() > 40e6
    assert all(float(p.sum()) == 4_000 for p in pieces)


def test_systems_without_it_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert return_freed_memory() is False
