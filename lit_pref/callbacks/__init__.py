"""Callbacks: evaluation, files of the run, progress."""

from lit_pref.callbacks.checkpoints import Checkpoints, WholeFileIO, newest_checkpoint
from lit_pref.callbacks.evaluation import Evaluation, evaluate
from lit_pref.callbacks.metrics_csv import MetricsCSV
from lit_pref.callbacks.probe import Probe
from lit_pref.callbacks.progress import RunProgress
from lit_pref.callbacks.run_files import RunFiles

__all__ = [
    "Checkpoints",
    "Evaluation",
    "MetricsCSV",
    "Probe",
    "RunFiles",
    "RunProgress",
    "WholeFileIO",
    "evaluate",
    "newest_checkpoint",
]
