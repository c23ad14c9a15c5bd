"""``lit-pref evaluate``: how good a policy is, with intervals. Imports no torch by itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lit_pref.app.request import run_command

__all__ = ["main"]

_HELP = """lit-pref evaluate: measure a policy on the task's validation prompts

Usage: lit-pref evaluate [RUN_DIR | MODEL_FOLDER] [group=option ...] [key=value ...]
       (or: python -m lit_pref.app.evaluate ...)

Measured: reward, KL to the reference, win rate against the reference's responses, preference
accuracy on pairs, length; each with a 95% interval. Written: evaluation.json, samples.jsonl and
reference_samples.jsonl in the output folder.

Examples:
  lit-pref evaluate runs/2026-01-31/12-00-00_dpo_onpolicy
  lit-pref evaluate runs/2026-01-31/12-00-00_dpo_onpolicy checkpoint=best responses=8
  lit-pref evaluate my_model task=text task.validation=prompts.jsonl reward=length
  lit-pref evaluate my_model reference_model=my_base_model task=text task.pairs=held_out.jsonl

Groups: model, task, reward, sampler, trainer, strategy. Keys of its own:
  checkpoint       weights of a run: last, best, export, or a checkpoint file (last)
  reference_model  initial (a run's policy before training), a model folder, or none
  responses        responses to each validation prompt (4)
  max_pairs        preference pairs at most (all)
  output           folder of the result (runs/<date>/<time>_evaluate)
  seed             of the task's own draws (0)

Every key with its value: lit-pref evaluate ... --cfg job
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see ``lit-pref evaluate --help``.

    Args:
        argv: arguments without the program's name; those of the process by default.
    """

    def work(request: object) -> None:
        from lit_pref.app.evaluate_job import evaluate_request

        evaluate_request(request)  # type: ignore[arg-type]

    run_command("evaluate", sys.argv[1:] if argv is None else argv, _HELP, work)


if __name__ == "__main__":
    main()
