"""The console script ``lit-pref``; imports nothing heavy before it knows what to do."""

from __future__ import annotations

import difflib
import importlib
import sys

__all__ = ["main"]

_HELP = """lit-pref: preference fine-tuning for PyTorch Lightning and Hydra

  lit-pref train [group=option ...] [key=value ...]      train
  lit-pref evaluate RUN_DIR|MODEL_FOLDER [key=value ...] measure reward, KL, wins, preferences
  lit-pref generate RUN_DIR|MODEL_FOLDER [key=value ...] respond to prompts: samples.jsonl
  lit-pref export RUN_DIR [output=FOLDER]                a run's weights as a Hugging Face folder
  lit-pref report RUN_DIR|SWEEP_DIR                      write its report.html again
  lit-pref inspect FILE [key=value ...]                  what training would see of a file
  lit-pref bench [group=option ...] [key=value ...]      speed and memory of a run
  lit-pref objectives                                    the table of objectives

Each has --help with examples.
"""

_COMMANDS = (
    "train", "evaluate", "generate", "export", "report", "inspect", "bench", "objectives",
)  # fmt: skip


def main() -> None:
    """Entry point of the console script."""
    command, rest = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if command in _COMMANDS:
        importlib.import_module(f"lit_pref.app.{command}").main(rest)
    elif command in ("-h", "--help"):
        print(_HELP, end="")
    else:
        near = difflib.get_close_matches(command, _COMMANDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        print(
            f"Refused: there is no command {command!r}.{hint}\n\n{_HELP}", end="", file=sys.stderr
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
