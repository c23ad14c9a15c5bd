"""``lit-pref export``: a run's weights as a Hugging Face folder. Imports no torch by itself."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_pref.app.preflight import did_you_mean
from lit_pref.app.request import Source, exit_codes, find_source
from lit_pref.errors import Refusal

__all__ = ["main"]

_HELP = """lit-pref export: write the policy of a run as a Hugging Face folder

Usage: lit-pref export RUN_DIR|CHECKPOINT_FILE [checkpoint=last|best|FILE] [output=FOLDER]
       (or: python -m lit_pref.app.export ...)

The folder loads with AutoModelForCausalLM.from_pretrained, tokenizer included; that of a reward
model with AutoModelForSequenceClassification (or reward=learned reward.path=FOLDER).

Examples:
  lit-pref export runs/2026-01-31/12-00-00_dpo_onpolicy output=my_model
  lit-pref export runs/2026-01-31/12-00-00_dpo_onpolicy checkpoint=best
  lit-pref export runs/2026-01-31/12-00-00_dpo_onpolicy/checkpoints/last.ckpt output=my_model

  checkpoint   weights of the run: last, best, or a checkpoint file (last)
  output       the folder to write; it must be new or empty (RUN_DIR/export for last,
               RUN_DIR/export_best for best)
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see ``lit-pref export --help``.

    Args:
        argv: arguments without the program's name; those of the process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if any(a in ("-h", "--help") for a in arguments):
        print(_HELP, end="")
        return
    with exit_codes():
        source, output = _parse(arguments)
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
        from lit_pref.app.export_job import export_run

        print(export_run(source, output))


def _parse(arguments: list[str]) -> tuple[Source, Path]:
    given = dict(a.split("=", 1) for a in arguments if "=" in a and not Path(a).exists())
    paths = [a for a in arguments if "=" not in a or Path(a).exists()]
    for key in given:
        if key not in ("checkpoint", "output"):
            near = did_you_mean(key, ["checkpoint", "output"])
            raise Refusal(f"{key}: lit-pref export has checkpoint and output alone.{near}")
    if len(paths) != 1:
        raise Refusal(f"expected one run directory or checkpoint file, got {len(paths)}\n\n{_HELP}")
    source = find_source(paths[0])
    if source.run is None:
        raise Refusal(f"{paths[0]} is a model folder already; give a run directory or a checkpoint")
    source.checkpoint = given.get("checkpoint", source.checkpoint or "last")
    which = source.checkpoint
    if "output" in given:
        output = Path(given["output"]).expanduser()
    elif which in ("last", "best"):
        output = source.run / ("export" if which == "last" else "export_best")
    else:
        raise Refusal(f"checkpoint={which}: say where to write with output=FOLDER")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise Refusal(f"{output} is there already; choose another folder with output=FOLDER")
    return source, output


if __name__ == "__main__":
    main()
