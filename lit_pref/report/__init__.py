"""Tables and pages made from the files of a run directory."""

from lit_pref.report.html import write_report
from lit_pref.report.read import MetricsTable, RunRecord, read_metrics, read_run
from lit_pref.report.samples import Comparison, PromptPair, compare
from lit_pref.report.sweep import SweepRecord, is_sweep, read_sweep
from lit_pref.report.sweep_table import write_sweep
from lit_pref.report.table import final_table

__all__ = [
    "Comparison",
    "MetricsTable",
    "PromptPair",
    "RunRecord",
    "SweepRecord",
    "compare",
    "final_table",
    "is_sweep",
    "read_metrics",
    "read_run",
    "read_sweep",
    "write_report",
    "write_sweep",
]
