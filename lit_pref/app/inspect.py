"""``lit-pref inspect``: what training would see of a file. Imports no torch by itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lit_pref.app.request import run_command
from lit_pref.errors import Refusal

__all__ = ["main"]

_HELP = """lit-pref inspect: show what training would see of a file

Usage: lit-pref inspect FILE [group=option ...] [key=value ...]
       (or: python -m lit_pref.app.inspect ...)

FILE is what task.pairs, task.prompts and task.validation take: JSON Lines, a JSON list or CSV (also
.gz), Parquet, a folder of save_to_disk, or an id of the Hugging Face hub.

Shown: how its columns are read; the tokens of a few rows with their roles (prompt, chosen,
rejected) and what carries loss; length histograms; duplicates, contradictions, ties; every row that
would be dropped, and why. Nothing is written.

Examples:
  lit-pref inspect docs/examples/pairs.jsonl
  lit-pref inspect pairs.csv model=smollm2 'task.columns={chosen: good, rejected: bad}'
  lit-pref inspect prompts.jsonl read_as=prompts rows=10
  lit-pref inspect org/name:train model=hf model.path=my_model task.max_response_tokens=256
  lit-pref inspect data.parquet tokens=50 > what_training_sees.txt

Groups: model (whose tokenizer; task=text chooses tiny, which has bytes for tokens), task, sampler.
Keys of its own:
  rows       usable rows whose tokens are shown (3)
  tokens     tokens shown of each prompt and response at most (200)
  read_as    responses, prompts, or auto: responses if there are any (auto)

Colours are for terminals alone; NO_COLOR=1 switches them off, FORCE_COLOR=1 on.
Every key with its value: lit-pref inspect FILE --cfg job
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see ``lit-pref inspect --help``.

    Args:
        argv: arguments without the program's name; those of the process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    files = [a for a in arguments if _names_a_file(a)]
    for file in files:
        arguments.remove(file)

    def work(request: object) -> None:
        if len(files) != 1:
            raise Refusal(f"expected one FILE, got {len(files) or 'none'}\n\n{_HELP}")
        from lit_pref.app.inspect_job import inspect_file

        inspect_file(request.cfg, files[0])  # type: ignore[attr-defined]

    run_command("inspect", arguments, _HELP, work)


def _names_a_file(argument: str) -> bool:
    return not argument.startswith(("-", "~", "+")) and (
        "=" not in argument or Path(argument).exists()
    )


if __name__ == "__main__":
    main()
