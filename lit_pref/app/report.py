"""``lit-pref report``: write a run's or a sweep's report again. Imports no torch by itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lit_pref.app.request import exit_codes
from lit_pref.errors import Refusal

__all__ = ["main"]

_HELP = """lit-pref report: write the report.html of runs and sweeps again

Usage: lit-pref report FOLDER [FOLDER ...]     (or: python -m lit_pref.app.report ...)

A sweep's table.csv and table.md are written again with it.

Examples:
  lit-pref report runs/2026-01-31/12-00-00_dpo_onpolicy
  lit-pref report runs/2026-01-31/12-00-00_sweep
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see ``lit-pref report --help``.

    Args:
        argv: arguments without the program's name; those of the process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if any(a in ("-h", "--help") for a in arguments):
        print(_HELP, end="")
        return
    with exit_codes():
        if not arguments:
            raise Refusal(f"expected at least one run directory\n\n{_HELP}")
        from tqdm import tqdm

        from lit_pref.report import is_sweep, write_report, write_sweep

        for folder in tqdm(arguments, unit="run", disable=len(arguments) == 1, file=sys.stderr):
            if is_sweep(folder):
                print(write_sweep(folder).path / "report.html")
            else:
                print(write_report(folder))


if __name__ == "__main__":
    main()
