"""How this process was started, told from its environment; imports nothing heavy."""

from __future__ import annotations

import os
from typing import Literal

__all__ = ["COUNT", "is_main", "local_rank", "rank", "started_by"]

COUNT = "LIT_PREF_PROCESSES"
"""Set in the processes that ``lit_pref.app.launch`` starts: how many there are on this machine."""

_INTERACTIVE = ("bash", "interactive")
"""Names of SLURM jobs that are a shell: what is typed there was not started by SLURM."""


def started_by() -> Literal["itself", "lit_pref", "torchrun", "slurm", "other"]:
    """Who started this process and its peers.

    ``itself``: a plain command, which starts more processes where the configuration asks for
    them. A SLURM job of one task counts as that too. ``other``: a launcher that sets LOCAL_RANK.
    """
    env = os.environ
    if COUNT in env:
        return "lit_pref"
    if "TORCHELASTIC_RUN_ID" in env:
        return "torchrun"
    if int(env.get("SLURM_NTASKS") or 1) > 1 and env.get("SLURM_JOB_NAME") not in _INTERACTIVE:
        return "slurm"
    return "other" if "LOCAL_RANK" in env else "itself"


def rank() -> int:
    """The global rank where it is known before a trainer exists; only 0 or not 0 matters.

    Files of the run directory are written, and messages are shown, by the process of rank 0.
    """
    env = os.environ
    by = started_by()
    if by == "torchrun":
        return int(env["RANK"])
    if by == "slurm":
        return int(env.get("SLURM_PROCID", 0))
    node = int(env.get("NODE_RANK") or env.get("GROUP_RANK") or 0)
    return node * int(env.get(COUNT) or 1) + int(env.get("LOCAL_RANK") or 0)


def local_rank() -> int:
    """The number of this process among those of its machine."""
    env = os.environ
    if started_by() == "slurm":
        return int(env.get("SLURM_LOCALID") or 0)
    return int(env.get("LOCAL_RANK") or 0)


def is_main() -> bool:
    """Whether this process writes the run's files and speaks for all."""
    return rank() == 0
