"""``lit-pref bench``: speed and memory of your own run. Imports no torch by itself."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from lit_pref.app.preflight import check_arguments, compose_config, composing, split
from lit_pref.app.request import exit_codes
from lit_pref.errors import Refusal

__all__ = ["main"]

_HELP = """lit-pref bench: speed and memory of a run, measured on a few of its steps

Usage: lit-pref bench [steps=N] [group=option ...] [key=value ...]
       (or: python -m lit_pref.app.bench ...)

Takes every override of lit-pref train, trains in a temporary folder and prints tokens a second,
the share of useful positions, model-FLOP utilisation, memory by part and time by phase. No run
directory is kept.

Examples:
  lit-pref bench objective=dpo data=offline task=text task.pairs=pairs.jsonl model=smollm2
  lit-pref bench steps=20 objective=grpo data=onpolicy

  steps        optimizer steps; the first is warm-up and not counted (6)
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see ``lit-pref bench --help``.

    Args:
        argv: arguments without the program's name; those of the process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if any(a in ("-h", "--help") for a in arguments):
        print(_HELP, end="")
        return
    if "" not in sys.path:  # dotted paths of the user's own modules, as with python -m
        sys.path.append("")
    with exit_codes():
        steps = _steps([a[6:] for a in arguments if a.startswith("steps=")])
        arguments = [a for a in arguments if not a.startswith("steps=")]
        check_arguments(arguments)
        overrides, _, searched = split(arguments)
        with composing():
            cfg = compose_config([*overrides, "paths.run_dir=."], searched)
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        from lit_pref.app.bench_job import measure

        print(measure(cfg, steps))


def _steps(given: list[str]) -> int:
    if not given:
        return 6
    if not given[-1].isdigit() or int(given[-1]) < 2:
        raise Refusal(f"steps={given[-1]}: expected a whole number from 2 (the first is warm-up)")
    return int(given[-1])


if __name__ == "__main__":
    main()
