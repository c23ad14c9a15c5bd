"""Callbacks: evaluation and its instruments, alarms, files of the run, progress."""

from lit_pref.callbacks.against_reference import AgainstReference
from lit_pref.callbacks.alarms import Alarms
from lit_pref.callbacks.checkpoints import Checkpoints, WholeFileIO, newest_checkpoint
from lit_pref.callbacks.curve import Curve
from lit_pref.callbacks.evaluation import Evaluation, evaluate
from lit_pref.callbacks.gradient_parts import GradientParts
from lit_pref.callbacks.metrics_csv import MetricsCSV
from lit_pref.callbacks.occasion import Instrument, Occasion
from lit_pref.callbacks.pair_probe import PairProbe
from lit_pref.callbacks.progress import RunProgress
from lit_pref.callbacks.run_files import RunFiles
from lit_pref.callbacks.sample_statistics import SampleStatistics

__all__ = [
    "AgainstReference",
    "Alarms",
    "Checkpoints",
    "Curve",
    "Evaluation",
    "GradientParts",
    "Instrument",
    "MetricsCSV",
    "Occasion",
    "PairProbe",
    "RunFiles",
    "RunProgress",
    "SampleStatistics",
    "WholeFileIO",
    "evaluate",
    "newest_checkpoint",
]
