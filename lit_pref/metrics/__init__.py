"""Metrics: torchmetrics classes of the instruments, the logging window, the glossary.

Names are imported on first use, so that reading the glossary imports no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "Coverage": "instruments",
    "Displacement": "instruments",
    "DistinctN": "instruments",
    "LengthStatistics": "instruments",
    "MeanInterval": "instruments",
    "SequenceKL": "instruments",
    "WinRate": "instruments",
    "GLOSSARY": "glossary",
    "Window": "window",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"lit_pref.metrics.{_HOME[name]}"), name)
    raise AttributeError(f"module 'lit_pref.metrics' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
