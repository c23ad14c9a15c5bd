"""``python scripts/reproduce.py``: run a figure's grid, draw it, judge it, write its page."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_pref.app.paper.bandits import FIGURES as BANDITS
from lit_pref.app.paper.cells import Curves, cells_of, run_cells
from lit_pref.app.paper.criteria import Criterion, verdict
from lit_pref.app.paper.exact import FIGURES as EXACT
from lit_pref.app.paper.gold import FIGURES as GOLD
from lit_pref.app.paper.lengths import FIGURES as LENGTHS
from lit_pref.app.paper.page import index_page, write_figure
from lit_pref.errors import Refusal

__all__ = ["LEGACY", "main", "reproduce"]

RUNS = BANDITS | LENGTHS | GOLD
"""Figures that are made of runs."""

LEGACY = ("model=gpt_nano_legacy", "task.reward_positions=prompt_and_response")
"""What ``--legacy`` adds to the token bandit: the original code's log-prob and reward."""


def main(argv: Sequence[str] | None = None, *, criteria: Path, docs: Path, cache: Path) -> int:
    """The command line.

    Args:
        argv: arguments; those of the process by default.
        criteria: folder of criterion files.
        docs: where pages are written unless --out says otherwise.
        cache: where finished cells are kept.
    """
    arguments = _parse(argv)
    known = sorted(p.stem for p in criteria.glob("*.yaml"))
    if arguments.list or not arguments.figures:
        for name in known:
            criterion = Criterion.read(criteria / f"{name}.yaml")
            print(f"{name:14} {_cost(criterion):>9}  {criterion.title}")
        return 0
    out = docs if arguments.out is None else Path(arguments.out)
    if arguments.set and out == docs:
        print("Refused: --set changes what the criterion is about; give --out too", file=sys.stderr)
        return 2
    names = known if arguments.figures == ["all"] else arguments.figures
    try:
        for name in names:
            criterion = Criterion.read(criteria / f"{name}.yaml")
            seeds = [int(s) for s in arguments.seeds.split(",")] if arguments.seeds else None
            result = reproduce(
                criterion,
                out=out,
                cache=cache,
                seeds=seeds,
                jobs=arguments.jobs,
                legacy=arguments.legacy,
                extra=arguments.set,
                draft=arguments.draft,
                tell=lambda line: print(f"  {line}", flush=True),
            )
            print(
                f"{result['figure']}: {result['verdict']}  ({out / result['figure']}.md)",
                flush=True,
            )
        if (out / "claims.yaml").exists():
            (out / "index.md").write_text(index_page(out, criteria))
    except Refusal as refusal:
        print(f"Refused: {refusal}", file=sys.stderr)
        return 2
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python scripts/reproduce.py",
        description="Reproduce figures of arXiv 2404.14367. Finished runs are kept.",
    )
    parser.add_argument(
        "figures", nargs="*", metavar="FIGURE", help="fig12 fig04_tokens ..., or all"
    )
    parser.add_argument("--list", action="store_true", help="name the figures and stop")
    parser.add_argument(
        "--seeds", help="run seeds, such as 1,2,3 (default: those of the criterion)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--out", help="folder for the pages (default docs/paper)")
    parser.add_argument(
        "--legacy", action="store_true",
        help="token bandit: the original code's unshifted log-prob and prompt-averaged reward",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="turn one more dial in every run, such as optimizer.clip_norm=1.0; needs --out",
    )  # fmt: skip
    parser.add_argument(
        "--draft", action="store_true", help="allow a criterion that is not committed; says so"
    )
    return parser.parse_args(argv)


def _cost(criterion: Criterion) -> str:
    if criterion.grid is None:
        return "exact"
    return f"{len(cells_of(criterion.grid, criterion.verdict))} runs"


def reproduce(
    criterion: Criterion,
    *,
    out: Path,
    cache: Path,
    seeds: Sequence[int] | None = None,
    jobs: int = 1,
    legacy: bool = False,
    extra: Sequence[str] = (),
    draft: bool = False,
    quick: bool = False,
    tell: Any = lambda line: None,
) -> dict[str, Any]:
    """Run, draw, judge and write one figure.

    Args:
        criterion: its criterion.
        out: folder for ``NAME.md``, ``NAME.png`` and ``NAME.json``.
        cache: folder of finished cells.
        seeds: instead of the criterion's.
        jobs: processes.
        legacy: see ``LEGACY``; the name gets ``_legacy``.
        extra: overrides of every run, after the others.
        draft: allow a criterion that is not committed.
        quick: the criterion's quick seeds and slack.
        tell: told a line per finished cell.

    Returns:
        What the JSON holds.

    Raises:
        Refusal: the criterion is not committed, or the seeds were used to tune.
    """
    commit = criterion.commit()
    if commit is None and not (draft or quick):
        raise Refusal(
            f"{criterion.path} is not committed as it is: a verdict needs a criterion that was "
            "fixed before the run. Commit it, or use --draft"
        )
    chosen = tuple(seeds or (criterion.quick if quick else criterion.verdict))
    tuned = set(chosen) & set(criterion.tuning)
    if tuned and not draft:
        raise Refusal(f"seeds {sorted(tuned)} were used for tuning; give others, or use --draft")
    overrides = [*(LEGACY if legacy else ()), *extra]
    name = criterion.name + ("_legacy" if legacy else "")
    out.mkdir(parents=True, exist_ok=True)
    picture = out / f"{name}.png"
    title = criterion.title + (" (legacy code)" if legacy else "")
    began = time.monotonic()
    curves = Curves()
    if criterion.grid is None:
        if legacy:
            raise Refusal(f"--legacy is about runs of the token bandit; {criterion.name} has none")
        numbers, tables = EXACT[criterion.name](picture, title, cache)
    else:
        if legacy and "tokens" not in criterion.name:
            raise Refusal("--legacy is about the token bandit: fig04_tokens, fig12_tokens, ...")
        figure, tables = RUNS[criterion.name], []
        cells = cells_of(criterion.grid, chosen, overrides)
        curves = run_cells(cells, cache, jobs=jobs, tell=tell)
        numbers = figure.numbers(curves)
        figure.draw(curves, picture, title)
    word, outcomes = verdict(criterion.checks, numbers, quick=quick)
    return write_figure(
        criterion,
        name=name,
        title=title,
        out=out,
        verdict=word,
        outcomes=outcomes,
        numbers=numbers,
        tables=tables,
        curves=curves,
        seeds=chosen,
        overrides=overrides,
        commit=commit,
        seconds=time.monotonic() - began,
    )
