"""Which objectives learn on the token bandit: docs/objectives/learning.json and learning.md.

    python scripts/learning_table.py                   # run what is missing, write both files
    python scripts/learning_table.py dpo ppo           # only these objectives
    python scripts/learning_table.py --again dpo       # run these once more
    python scripts/learning_table.py --table           # only write learning.md again

Settings, seeds and the margin are those of tests/objectives/learning_settings.py, fixed before the
first run. A cell (objective, seed) that is in the JSON is not run again. On two cores all of it
takes about ten minutes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
FOLDER = ROOT / "docs" / "objectives"
RESULTS, PAGE = FOLDER / "learning.json", FOLDER / "learning.md"
FIELDS = ("reward_start", "reward_final", "kl_final")
INTRODUCTION = """# What learns on the token bandit

{rounds} rounds of 10 prompts x 10 responses, one step each, on-policy, on reward `r1`, with the
published defaults of every objective and the same learning rate. An objective *learns* with a seed
when the true reward on the validation prompts ends at least {margin} above its start. Settings and
margin were fixed before the first run (`tests/objectives/learning_settings.py`); nothing is tuned
to an objective, so that one that does not learn here may well do so with another beta or learning
rate. `scripts/learning_table.py` makes this page.

`sft` is the control: on its own samples its expected gradient is zero, so that its spread over
the seeds is how far a policy drifts by chance, and a gain of that size proves nothing. With one
step in a round every probability ratio is 1, so objectives that differ in their clipping alone are
equal here.
"""


def load_settings() -> Any:
    """The module tests/objectives/learning_settings.py."""
    file = ROOT / "tests" / "objectives" / "learning_settings.py"
    spec = importlib.util.spec_from_file_location("learning_settings", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SETTINGS = load_settings()


def objectives() -> list[str]:
    """Every objective that trains a policy, by family and name."""
    from lit_pref.app.objectives import declarations

    return [d.name for d in declarations() if d.kind.needs.policy]


def learned(cell: dict[str, float]) -> bool:
    """The verdict on one seed."""
    return cell["reward_final"] - cell["reward_start"] >= SETTINGS.MARGIN


def run_cell(objective: str, seed: int, folder: Path) -> dict[str, float]:
    """Train one objective with one seed; its true reward before and after, and its KL in nats."""
    from hydra import compose

    from lit_pref.app.preflight import composing
    from lit_pref.app.run import run_job

    overrides = [f"objective={objective}", *SETTINGS.OVERRIDES, f"seed={seed}"]
    with composing():
        cfg = compose("train", overrides=[*overrides, f"paths.run_dir={folder}"])
    outcome = run_job(cfg, folder)
    if outcome.exit_code:
        raise RuntimeError(f"{objective}, seed {seed}: {outcome.status}: {outcome.reason}")
    summary = json.loads((folder / "summary.json").read_text())
    return {name: round(summary[name], 4) for name in FIELDS}


def read() -> dict[str, dict[str, dict[str, float]]]:
    """The committed results: objective -> seed -> numbers."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def write(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """Both files, whole or not at all."""
    known = {name: results[name] for name in sorted(results)}
    for path, text in ((RESULTS, json.dumps(known, indent=1) + "\n"), (PAGE, page(known))):
        part = path.with_suffix(path.suffix + ".part")
        part.write_text(text)
        part.replace(path)


def page(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """The page learning.md."""
    seeds = [str(s) for s in SETTINGS.SEEDS]
    heads = [
        "objective", "learned", "reward before", *(f"seed {s}" for s in seeds),
        "mean after", "mean gain", "mean KL (nats)",
    ]  # fmt: skip
    lines = [INTRODUCTION.format(rounds=SETTINGS.ROUNDS, margin=SETTINGS.MARGIN)]
    lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    complete = {n: c for n, c in results.items() if all(s in c for s in seeds)}
    ranked = sorted(complete.items(), key=lambda item: -_mean(item[1], seeds, "reward_final"))
    for name, cells in ranked:
        count = sum(learned(cells[s]) for s in seeds)
        verdict = {0: "no", len(seeds): "yes"}.get(count, f"{count} of {len(seeds)} seeds")
        before, after, kl = (
            _mean(cells, seeds, f) for f in ("reward_start", "reward_final", "kl_final")
        )
        finals = " | ".join(f"{cells[s]['reward_final']:.3f}" for s in seeds)
        lines.append(
            f"| [`{name}`]({name}.md) | {verdict} | {before:.3f} | {finals} | {after:.3f} "
            f"| {after - before:+.3f} | {kl:.1f} |"
        )
    failed = [f"`{n}`" for n, c in ranked if not all(learned(c[s]) for s in seeds)]
    lines += ["", f"Not with every seed: {', '.join(failed) or 'none'}."]
    return "\n".join(lines) + "\n"


def _mean(cells: dict[str, dict[str, float]], seeds: list[str], field: str) -> float:
    return sum(cells[s][field] for s in seeds) / len(seeds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("objectives", nargs="*", help="all by default")
    parser.add_argument("--again", action="store_true", help="run cells that are there, too")
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    known = objectives()
    wanted = args.objectives or known
    if unknown := sorted(set(wanted) - set(known)):
        parser.error(f"no such objective that trains a policy: {', '.join(unknown)}")
    results = {n: c for n, c in read().items() if n in known}
    if args.again:
        for name in wanted:
            results.pop(name, None)
    if not args.table:
        for seed in SETTINGS.SEEDS:  # all objectives with the first seed first
            for name in wanted:
                if str(seed) in results.get(name, {}):
                    continue
                with tempfile.TemporaryDirectory() as base:
                    cell = run_cell(name, seed, Path(base) / "run")
                results.setdefault(name, {})[str(seed)] = cell
                write(results)
                print(name, seed, cell, "learned" if learned(cell) else "did not learn", flush=True)
    write(results)


if __name__ == "__main__":
    main()
