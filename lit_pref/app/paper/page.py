"""What a reproduction leaves: a JSON with all numbers, a page, and the index of claims."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import lit_pref
from lit_pref.app.paper.cells import Curves
from lit_pref.app.paper.criteria import Criterion, Outcome, interval

__all__ = ["index_page", "write_figure"]

WORDS = {"holds": "holds", "holds_partly": "holds partly", "does_not_hold": "does not hold"}


def write_figure(
    criterion: Criterion,
    *,
    name: str,
    title: str,
    out: Path,
    verdict: str,
    outcomes: Sequence[Outcome],
    numbers: Mapping[str, Sequence[float]],
    tables: Sequence[list[list[str]]],
    curves: Curves,
    seeds: Sequence[int],
    overrides: Sequence[str],
    commit: str | None,
    seconds: float,
) -> dict[str, Any]:
    """Write ``NAME.json`` and ``NAME.md``; returns what the JSON holds."""
    runs = curves.runs
    result = {
        "figure": name,
        "title": title,
        "claims": list(criterion.claims),
        "verdict": verdict,
        "criterion": {
            "file": f"criteria/{criterion.path.name}",
            "sha256": criterion.digest(),
            "commit": commit,
            "origin": criterion.origin,
        },
        "checks": [_check(o) for o in outcomes],
        "values": {k: _value(v) for k, v in numbers.items()},
        "seeds": {"verdict": list(seeds) if runs else [], "tuning": list(criterion.tuning)},
        "settings": criterion.grid,
        "overrides": list(overrides),
        "cost": {
            "runs": len(runs),
            "training_seconds": round(sum(r.seconds for r in runs), 1),
            "wall_seconds_of_this_call": round(seconds, 1),
            "optimizer_steps": int(sum(r.counters["steps"] for r in runs)),
            "samples": int(sum(r.counters["samples"] for r in runs)),
            "reward_queries": int(sum(r.counters["reward_queries"] for r in runs)),
        },
        "versions": {"lit_pref": lit_pref.__version__, "python": platform.python_version()},
        "curves": _curves(curves),
        "tables": list(tables),
    }
    _write(out / f"{name}.json", json.dumps(result, indent=1) + "\n")
    notes = criterion.path.parent.parent / "notes" / f"{name}.md"
    text = _page(result, outcomes, notes.read_text() if notes.exists() else "")
    _write(out / f"{name}.md", text)
    return result


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _finite(number: float | None) -> float | str | None:
    if number is None or math.isfinite(number):
        return None if number is None else float(f"{number:.6g}")
    return "nan" if math.isnan(number) else ("inf" if number > 0 else "-inf")


def _value(values: Sequence[float]) -> dict[str, Any]:
    mean, low, high = interval([float(v) for v in values])
    return {
        "mean": _finite(mean),
        "interval95": None if low is None else [_finite(low), _finite(high)],
        "by_seed": [_finite(float(v)) for v in values],
    }


def _check(outcome: Outcome) -> dict[str, Any]:
    check = outcome.check
    return {
        "value": check.value,
        "says": check.says,
        "at_least": check.at_least,
        "at_most": check.at_most,
        "central": check.central,
        **_value(outcome.values),
        "holds": outcome.holds,
    }


def _curves(curves: Curves) -> list[dict[str, Any]]:
    """The points of every run, rounded."""
    return [
        {
            **dict(run.cell.labels),
            "seed": run.cell.seed,
            **{
                k: [_finite(float(f"{v:.4g}")) for v in values]
                for k, values in run.columns.items()
                if k in ("step", "samples", "reward_queries", "curve/reward", "curve/kl")
            },
        }
        for run in curves.runs
    ]


# --------------------------------------------------------------------------- pages


def _page(result: dict[str, Any], outcomes: Sequence[Outcome], notes: str) -> str:
    name, cost, seeds = result["figure"], result["cost"], result["seeds"]
    command = f"python scripts/reproduce.py {name.removesuffix('_legacy')}"
    if name.endswith("_legacy"):
        command += " --legacy"
    elif result["overrides"]:
        command += "".join(f" --set {o}" for o in result["overrides"]) + " --out FOLDER"
    lines = [f"# {result['title']}", "", f"Verdict: **{WORDS[result['verdict']]}**.", ""]
    lines += [f"![{result['title']}]({name}.png)", ""]
    if notes:
        lines += [notes.strip(), ""]
    lines += ["## Criterion", "", result["criterion"]["origin"], ""]
    lines += ["| check | bound | value | 95 % interval | holds |", "|---|---|---|---|---|"]
    for outcome in outcomes:
        says = outcome.check.says + (" (central)" if outcome.check.central else "")
        held = "yes" if outcome.holds else "**no**"
        spread = "" if outcome.low is None else f"{outcome.low:.3g} to {outcome.high:.3g}"
        lines.append(f"| {says} | {_bound(outcome)} | {outcome.mean:.4g} | {spread} | {held} |")
    commit = result["criterion"]["commit"]
    state = f"as of commit {commit[:12]}" if commit else "not committed: a draft"
    lines += [
        "",
        f"Criterion file: [{result['criterion']['file']}]({result['criterion']['file']}), {state}.",
    ]
    if cost["runs"]:
        lines += [
            "Means over seeds are compared; bands and intervals are 95 % t-intervals over seeds. "
            f"Seeds of the verdict: {_list(seeds['verdict'])}. Seeds of tuning: "
            f"{_list(seeds['tuning']) or 'none'}.",
        ]
    for table in result["tables"]:
        lines += ["", *_table(table)]
    others = {
        k: v for k, v in result["values"].items() if k not in {o.check.value for o in outcomes}
    }
    if others:
        lines += ["", "## Other numbers", "", "| number | mean | 95 % interval |", "|---|---|---|"]
        for key, value in others.items():
            spread = value["interval95"]
            text = "" if spread is None else f"{spread[0]} to {spread[1]}"
            lines.append(f"| {key} | {value['mean']} | {text} |")
    lines += ["", "## Run it", "", f"    {command}", ""]
    if cost["runs"]:
        experiment = result["settings"]["experiment"]
        lines += [
            f"One run of it: `python train.py experiment={experiment}`; its settings and dials are "
            f"in `configs/experiment/{experiment}.yaml`, the grid in the criterion file.", "",
            f"Cost: {cost['runs']} runs, {cost['training_seconds']:.0f} s in all, "
            f"{cost['optimizer_steps']:,} optimizer steps, {cost['samples']:,} samples, "
            f"{cost['reward_queries']:,} reward queries.", "",
        ]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def _bound(outcome: Outcome) -> str:
    low, high = outcome.check.at_least, outcome.check.at_most
    parts = [f"at least {low:g}"] if low is not None else []
    return " and ".join(parts + ([f"at most {high:g}"] if high is not None else []))


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _table(rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(row).replace("||", "\\|\\|") + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def index_page(folder: Path, criteria: Path) -> str:
    """Every claim of the paper with what was found, from ``claims.yaml`` and the JSON files."""
    saved = yaml.safe_load((folder / "claims.yaml").read_text(encoding="utf-8"))
    lines = ["# The paper, reproduced", "", saved["intro"].strip(), ""]
    lines += ["| # | claim | evidence here |", "|---|---|---|"]
    for claim in saved["claims"]:
        found = [_evidence(folder, criteria, name) for name in claim["figures"]]
        lines.append(
            f"| {claim['number']} | {claim['says']} | {'; '.join(found) or 'not run yet'} |"
        )
    lines += [
        "",
        "## All figures",
        "",
        "| figure | verdict | runs | seconds |",
        "|---|---|---|---|",
    ]
    for name in saved["figures"]:
        data = _read(folder, name)
        if data is None:
            lines.append(f"| {saved['figures'][name]} | not run yet | | |")
            continue
        cost = data["cost"]
        lines.append(
            f"| [{data['title']}]({name}.md) | {WORDS[data['verdict']]} | {cost['runs']} | "
            f"{cost['training_seconds']:.0f} |"
        )
    return "\n".join([*lines, "", saved["closing"].strip()]) + "\n"


def _evidence(folder: Path, criteria: Path, name: str) -> str:
    data = _read(folder, name)
    if data is None:
        return f"{name}: not run yet"
    return f"[{name}]({name}.md): {WORDS[data['verdict']]}"


def _read(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None
