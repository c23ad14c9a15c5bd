"""One generation: respond to every prompt of the task, write ``samples.jsonl``."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from lit_pref.app.build import make
from lit_pref.app.policy import (
    PolicyWork,
    load_weights,
    policy_of,
    reward_of,
    work_on,
)
from lit_pref.app.request import Request, new_output
from lit_pref.app.terminal import Bars, lines
from lit_pref.data.generate import generate_groups
from lit_pref.report.table import number
from lit_pref.types import Group, Refusal

__all__ = ["generate_request"]

log = logging.getLogger(__name__)

PROMPTS_AT_ONCE = 256
"""Prompts between two writes, so that a long generation that stops leaves what it has."""


def generate_request(request: Request) -> Path:
    """Respond to all prompts; writes the file, prints a short table.

    Returns:
        The file.

    Raises:
        Refusal: the request cannot be done, or the file is there already.
    """
    cfg = request.cfg
    if not isinstance(cfg.responses, int) or cfg.responses < 1:
        raise Refusal(f"responses must be a whole number from 1, got {cfg.responses!r}")
    target = _target(cfg.output)
    task, policy = policy_of(request)
    reward = reward_of(cfg, task, prefer_true=False)
    sampler = make(cfg.sampler)
    if hasattr(sampler, "check"):
        sampler.check(policy)
    policy.load()
    weights = load_weights(policy, request.source)
    prompts = task.all_prompts()
    part = target.with_name(target.name + ".part")
    totals = {"responses": 0, "tokens": 0, "reward": 0.0}

    def work(module: PolicyWork) -> None:
        bars = Bars("policy", total=len(prompts) * cfg.responses)
        with open(os.devnull if module.trainer.global_rank else part, "w", encoding="utf-8") as out:
            for start in range(0, len(prompts), PROMPTS_AT_ONCE):
                groups = generate_groups(
                    module.policy,
                    prompts[start : start + PROMPTS_AT_ONCE],
                    task=task,
                    sampler=sampler,
                    reward=reward,
                    key=(cfg.seed, "generate"),
                    responses=cfg.responses,
                    progress=bars,
                    **module.where(),
                )
                bars.before += len(groups) * cfg.responses
                for group in groups:
                    group.policy_version = weights["step"] or 0
                    out.write(json.dumps(group.to_json(), ensure_ascii=False) + "\n")
                out.flush()
                _count(totals, groups)
        bars.close()

    module = PolicyWork(policy, None, micro_batch_tokens=cfg.model.micro_batch_tokens, work=work)
    try:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # the first process writes
            target.parent.mkdir(parents=True, exist_ok=True)
        work_on(cfg, module)
    except BaseException as error:
        if part.exists() and part.stat().st_size:
            log.error("the responses written so far are in %s", part)
        if isinstance(error, OSError):
            raise Refusal(
                f"{target} cannot be written ({error}); choose another file with output=FILE"
            ) from error
        raise
    if module.trainer.is_global_zero:
        os.replace(part, target)
        print(_table(target, request, len(prompts), totals, scored=reward is not None))
    return target


def _target(output: str | None) -> Path:
    path = new_output("generate") if output is None else Path(output).expanduser()
    target = path if path.suffix == ".jsonl" else path / "samples.jsonl"
    if target.exists():
        raise Refusal(f"{target} is there already; choose another with output=FILE or remove it")
    return target


def _count(totals: dict[str, Any], groups: list[Group]) -> None:
    for response in (r for g in groups for r in g.responses):
        totals["responses"] += 1
        totals["tokens"] += len(response.ids)
        totals["reward"] += response.reward or 0.0


def _table(
    target: Path, request: Request, prompts: int, totals: dict[str, Any], *, scored: bool
) -> str:
    count = totals["responses"]
    rows = [
        ("model", request.source.name or str(request.cfg.model.name)),
        ("responses", f"{number(count)} to {number(prompts)} prompts"),
        ("length", f"{number(totals['tokens'] / count)} tokens on average"),
    ]
    if scored:
        rows.append(("reward", f"{number(totals['reward'] / count)} on average"))
    return lines([*rows, ("samples", str(target))])
