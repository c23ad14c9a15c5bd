"""``lit-pref generate``: responses to prompts, as ``samples.jsonl``. Imports no torch by itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lit_pref.app.request import run_command

__all__ = ["main"]

_HELP = """lit-pref generate: respond to prompts with a policy

Usage: lit-pref generate [RUN_DIR | MODEL_FOLDER] [group=option ...] [key=value ...]
       (or: python -m lit_pref.app.generate ...)

Every usable row of task.prompts gets responses; they are scored if there is a reward. Written:
samples.jsonl, one line per prompt, the format of a run's samples.jsonl.

Examples:
  lit-pref generate runs/2026-01-31/12-00-00_dpo_onpolicy task.prompts=my.jsonl
  lit-pref generate runs/2026-01-31/12-00-00_dpo_onpolicy checkpoint=best responses=4
  lit-pref generate my_model task.prompts=my.jsonl output=answers.jsonl sampler.temperature=0
  lit-pref generate my_model task.prompts=my.jsonl reward=length sampler.max_new_tokens=128

Groups: model, task, reward, sampler, trainer, strategy. Keys of its own:
  checkpoint   weights of a run: last, best, export, or a checkpoint file (last)
  responses    responses to each prompt (1)
  output       a file (.jsonl) or a folder (runs/<date>/<time>_generate)
  seed         of the responses (0)

Every key with its value: lit-pref generate ... --cfg job
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see ``lit-pref generate --help``.

    Args:
        argv: arguments without the program's name; those of the process by default.
    """

    def work(request: object) -> None:
        from lit_pref.app.generate_job import generate_request

        generate_request(request)  # type: ignore[arg-type]

    run_command("generate", sys.argv[1:] if argv is None else argv, _HELP, work)


if __name__ == "__main__":
    main()
