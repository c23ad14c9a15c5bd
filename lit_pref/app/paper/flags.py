"""Table 1 and algorithm 1: what objectives declare against what they do in one step of a run."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch

from lit_pref.app.paper import plots
from lit_pref.app.preflight import compose_config, composing

__all__ = ["METHODS", "counters_numbers", "flags_numbers", "one_run"]

# name -> overrides, then Table 1: fresh samples needed or usual, reuse allowed, negative gradient
METHODS: dict[str, tuple[list[str], tuple[bool, bool, bool]]] = {
    "PPO": (["objective=ppo", "data=onpolicy"], (True, True, True)),
    "REINFORCE": (["objective=reinforce", "data=onpolicy"], (True, False, True)),
    "DPO": (["objective=dpo", "data=offline"], (False, True, True)),
    "IPO": (["objective=ipo", "data=offline"], (False, True, True)),
    "Pref-FT": (["objective=pref_ft", "data=offline"], (False, True, False)),
    "offline RWR": (["objective=rwr", "data=offline"], (False, True, False)),
    "offline Best-of-N": (["objective=best_of_n", "data=offline"], (False, True, False)),
    "RWR": (["objective=rwr", "data=onpolicy"], (True, True, False)),
    "Best-of-N": (["objective=best_of_n", "data=onpolicy"], (True, True, False)),
    "ReST (filtered SFT)": (["objective=filtered_sft", "data=onpolicy"], (True, True, False)),
    "AWR": (["objective=awr", "data=onpolicy"], (True, True, False)),
    "on-policy DPO": (["objective=dpo", "data=onpolicy"], (True, True, True)),
    "on-policy IPO": (["objective=ipo", "data=onpolicy"], (True, True, True)),
    "Best-of-N + negative term": (
        ["objective=best_of_n", "objective.negative=worst", "data=onpolicy"], (True, True, True)
    ),
}  # fmt: skip

_BASE = [
    "task=contextual_bandit", "reference=closed_form", "callbacks=curve", "optimizer=adam",
    "export=false", "seed=1",
]  # fmt: skip


def one_run(overrides: list[str], steps: int, folder: Path) -> dict[str, Any]:
    """Train for a few steps in the ordinary loop and look at the gradient at the log-probs.

    Returns:
        ``flag`` (the objective's own), ``positive`` (largest dLoss/dlogp, above 0 where the
        update lowers the log-prob of a response), ``reuse``, ``counters``, ``steps``.
    """
    import lightning as L

    from lit_pref.app.build import build, trainer_of
    from lit_pref.app.isolation import isolated

    with composing():
        cfg = compose_config([*_BASE, *overrides, f"trainer.max_steps={steps}", "paths.run_dir=."])
    largest = [-float("inf")]

    def watch(module: Any, arguments: Any, out: Any) -> None:
        if out.logps.requires_grad:
            out.logps.register_hook(lambda g: largest.append(g.max().item()))

    with isolated():
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        torch.set_num_threads(1)
        L.seed_everything(cfg.seed, workers=False, verbose=False)
        cfg.paths.run_dir = str(folder)
        parts = build(cfg)
        parts.policy.register_forward_hook(watch)
        trainer = trainer_of(cfg, parts, str(folder), enable_checkpointing=False)
        trainer.fit(parts.objective, datamodule=parts.data)
        latest = parts.objective.latest
    return {
        "flag": parts.objective.negative_gradient,
        "positive": max(largest),
        "reuse": type(parts.objective).reuse,
        "counters": dict(parts.data.counters),
        "steps": trainer.global_step,
        "gap": latest.get("sampling/logp_difference"),
    }


def flags_numbers(picture: Path, title: str, cache: Path) -> tuple[dict, list]:
    """Declared flags against table 1, and a probe of the gradient at the log-probs."""
    table = [["method", "on-policy", "reuse", "negative gradient", "largest dLoss/dlog-prob"]]
    declared = probed = 0
    shown = []
    for name, (overrides, (fresh, reuse, negative)) in METHODS.items():
        with tempfile.TemporaryDirectory() as folder:
            seen = one_run(overrides, 1, Path(folder))
        moves_down = seen["positive"] > 1e-9
        declared += seen["flag"] != negative
        probed += moves_down != negative
        shown.append((name, fresh, reuse, negative))
        words = [("yes" if flag else "no") for flag in (fresh, reuse, moves_down)]
        table.append([name, *words, f"{seen['positive']:.3g}"])
    with plots.figure(picture, 1, 1, title=title, size=3.6) as axes:
        axis = axes[0][0]
        for row, (_, *flags) in enumerate(reversed(shown)):
            for column, flag in enumerate(flags):
                color = plots.STYLES[0]["color"]
                axis.scatter(
                    column, row, s=60, facecolor=color if flag else "none", edgecolor=color
                )
        axis.set_yticks(range(len(shown)), [s[0] for s in reversed(shown)])
        axis.set_xticks(range(3), ["on-policy\nsampling", "sample\nreuse", "negative\ngradient"])
        axis.set_xlim(-0.5, 2.5)
        axis.grid(False)
    return {"declared_mismatches": [float(declared)], "probe_mismatches": [float(probed)]}, [table]


SIZES = ((10, 10, 1, 4), (30, 10, 1, 2), (10, 10, 5, 3), (20, 10, 3, 2))
"""Prompts a round, prompts a batch, passes, rounds."""


def counters_numbers(picture: Path, title: str, cache: Path) -> tuple[dict, list]:
    """Steps and queries of algorithm 1; equal policies where B = M and T = 1."""
    table = [["B", "M", "T", "rounds", "steps", "rounds T B / M", "queries", "rounds B"]]
    wrong, strict, points = 0, 0.0, []
    for prompts, batch, passes, rounds in SIZES:
        overrides = [
            "objective=best_of_n", "data=onpolicy", "task.train_prompts=100",
            f"data.prompts_per_round={prompts}", f"data.batch_size={batch}",
            f"data.reuse={passes}", f"data.rounds={rounds}",
        ]  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            seen = one_run(overrides, -1, Path(folder))
        steps, queries = rounds * passes * prompts // batch, rounds * prompts * 10
        wrong += seen["steps"] != steps
        wrong += seen["counters"]["reward_queries"] != queries
        points.append((steps, seen["steps"], queries, seen["counters"]["reward_queries"]))
        if prompts == batch and passes == 1:
            strict = float("nan") if seen["gap"] is None else max(strict, seen["gap"])
        cells = (prompts * 10, batch * 10, passes, rounds, seen["steps"], steps)
        table.append([*map(str, cells), str(seen["counters"]["reward_queries"]), str(queries)])
    with plots.figure(picture, 1, 2, title=title, size=2.6) as axes:
        for axis, (a, b), what in zip(
            axes[0], ((0, 1), (2, 3)), ("optimizer steps", "reward queries"), strict=True
        ):
            axis.plot(
                [p[a] for p in points],
                [p[b] for p in points],
                **{**plots.STYLES[0], "linestyle": ""},
            )
            axis.axline((0, 0), slope=1, color="#999999", linewidth=1)
            axis.set(xlabel=f"{what}, by the formula", ylabel=f"{what}, counted")
    return {"wrong_counts": [float(wrong)], "sampler_gap": [strict]}, [table]
