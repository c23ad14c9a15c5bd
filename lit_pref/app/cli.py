"""The console script ``lit-pref``; imports nothing heavy before it knows what to do."""

from __future__ import annotations

import sys

from lit_pref.errors import Refusal

__all__ = ["main"]

_HELP = """lit-pref: preference fine-tuning for PyTorch Lightning and Hydra

  lit-pref train [group=option ...] [key=value ...]   train (lit-pref train --help)
  lit-pref report RUN_DIRECTORY                       write its report.html again
"""


def main() -> None:
    """Entry point of the console script."""
    command, rest = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if command == "train":
        from lit_pref.app.train import main as train

        train(rest)
    elif command == "report" and rest and rest[0] not in ("-h", "--help"):
        from lit_pref.report import write_report

        try:
            print(write_report(rest[0]))
        except Refusal as refusal:
            print(f"Refused: {refusal}", file=sys.stderr)
            sys.exit(2)
    elif command in ("-h", "--help", "report"):
        print(_HELP, end="")
    else:
        print(f"Refused: there is no command {command!r}.\n\n{_HELP}", end="", file=sys.stderr)
        sys.exit(2)
