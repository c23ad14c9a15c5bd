"""Tables and pages made from the files of a run directory."""

from lit_pref.report.html import write_report
from lit_pref.report.read import MetricsTable, RunRecord, read_metrics, read_run
from lit_pref.report.samples import Comparison, PromptPair, compare
from lit_pref.report.table import final_table

__all__ = [
    "Comparison",
    "MetricsTable",
    "PromptPair",
    "RunRecord",
    "compare",
    "final_table",
    "read_metrics",
    "read_run",
    "write_report",
]
