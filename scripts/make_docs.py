"""Write the pages about objectives and metrics, from docstrings, YAML and notes.yaml.

    python scripts/make_docs.py                      # write the pages
    python scripts/make_docs.py --record             # first run every objective for two steps and
    python scripts/make_docs.py --record dpo ppo     # keep the names it logs in metrics.json

Written: docs/objectives/index.md, docs/objectives/<name>.md and docs/guide/metrics.md. A test
compares them with what this script would write.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import inspect
import json
import os
import re
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from omegaconf import OmegaConf  # noqa: E402

from lit_pref.app.objectives import Declaration, declarations, markdown_table  # noqa: E402
from lit_pref.metrics.glossary import GLOSSARY, entry, glossary_page  # noqa: E402

FOLDER = ROOT / "docs" / "objectives"
NOTES, METRICS = FOLDER / "notes.yaml", FOLDER / "metrics.json"
Recorded = dict[str, dict[str, list[str]]]
"""Objective -> options ("" for none) -> names logged."""
SOURCES = ("onpolicy", "offline", "mixed")
SIZES = (
    "data.responses_per_prompt=4", "data.batch_size=4", "export=false", "seed=7",
)  # fmt: skip
TWO_STEPS = {
    "onpolicy": ("data.prompts_per_round=4", "data.rounds=2"),
    "offline": ("task.offline_prompts=6", "data.prompts_per_round=4", "data.reuse=2"),
    "mixed": ("data.prompts_per_round=4", "data.rounds=2", "data.no_signal=refill"),
}
INSTRUMENTS = "callbacks=instruments"
ALL_INSTRUMENTS = (
    f"{INSTRUMENTS} task=text model=tiny reward=length sampler.max_new_tokens=16 "
    f"sampler.stop_ids=[{','.join(map(str, range(0, 250, 9)))}] "
    "callbacks.against_reference.comparer={_target_:lit_pref.testing.Shorter}"
)
"""Lengths that differ, and a judge: what the bandit cannot log. Run for one objective."""
_SECTIONS = re.compile(r"\n\s*(Args|Returns|Raises|Example|Examples|Attributes):\n.*", re.S)

PAPER = "Table 1 of arXiv 2404.14367"
TABLE1 = {
    "ppo": ("PPO", "yes", "yes", "yes"),
    "reinforce": ("REINFORCE", "yes", "no", "yes"),
    "dpo": ("DPO, IPO and variants", "no", "-", "yes"),
    "pref_ft": ("Pref-FT, Binary FeedMe", "no", "-", "no"),
    "offline_weighted": ("offline RWR, offline Best-of-N", "no", "-", "no"),
    "online_weighted": ("ReST, RWR, online Best-of-N", "yes", "yes", "no"),
}
"""Its rows: method, on-policy sampling, sample reuse, negative gradient."""

INDEX = """# Objectives

One file each under `lit_pref/objectives/`, one YAML each under `configs/objective/`. What an
objective needs and does is declared by its class; `lit-pref objectives` prints this table.
*Negative gradient*: the update lowers the log-probability of some response tokens. *Fresh samples*:
only right on samples of the present policy, so that `data=offline`, `mixed` and `replay` are
refused. *Reuse*: right for `data.reuse` above 1; others say so and go on.

{table}

On-policy DPO is `objective=dpo data=onpolicy`; every objective without *fresh samples* trains on
any source, but for `reward_model`, which trains no policy. [What learns on the token
bandit](learning.md) compares them under one fixed setting; [Metrics](../guide/metrics.md) explains
every logged name.
"""


# --------------------------------------------------------------------------- docstrings


def prose(doc: str) -> str:
    """A Google docstring without its argument sections, as Markdown."""
    text = _SECTIONS.sub("", inspect.cleandoc(doc)).strip()
    text = re.sub(r"^\.\. math:: ?(.*(?:\n[ \t]+\S.*)*)", _math, text, flags=re.M)
    text = re.sub(r"^=+(?: +=+)+\n(?:.+\n)*=+(?: +=+)+$", _table, text, flags=re.M)
    text = re.sub(r":math:`([^`]+)`", r"$`\1`$", text)
    return re.sub(r"(?<!`)``([^`]+)``(?!`)", r"`\1`", text)


def _math(match: re.Match[str]) -> str:
    lines = "\n".join(line.strip() for line in match[1].splitlines())
    return f"```math\n{lines}\n```"


def _table(match: re.Match[str]) -> str:
    rules = [line for line in match[0].splitlines() if line.startswith("=")]
    starts = [m.start() for m in re.finditer("=+", rules[0])]
    rows = [line for line in match[0].splitlines() if not line.startswith("=")]
    ends: list[int | None] = [*starts[1:], None]
    cells = [[row[a:b].strip() for a, b in zip(starts, ends, strict=True)] for row in rows]
    if len(rules) == 2:  # no header row
        cells.insert(0, [""] * len(starts))
    head, *body = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in cells]
    return "\n".join([head, "|" + "---|" * len(starts), *body])


def losses_of(doc: str) -> list[tuple[str, str]]:
    """(dotted name, docstring as Markdown) of the functions that a docstring names."""
    out = []
    for name in dict.fromkeys(re.findall(r"``functional\.([\w.]+)``", doc)):
        module, _, function = name.rpartition(".")
        if not module:  # a whole module
            continue
        found = getattr(importlib.import_module(f"lit_pref.functional.{module}"), function)
        out.append((f"lit_pref.functional.{name}", prose(found.__doc__)))
    return out


# --------------------------------------------------------------------------- YAML


def yaml_keys(text: str) -> list[tuple[str, str, str]]:
    """(key, default, comment) of a configuration file, nested keys with dots."""
    out: list[tuple[str, str, str]] = []
    comment: list[str] = []
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        if line.strip().startswith("#"):
            comment.append(line.strip().lstrip("# "))
        elif match := re.match(r"( *)([\w.]+):(?: +(.*))?$", line):
            indent = len(match[1])
            above = [a for a in above if a[0] < indent]
            key = ".".join([*(name for _, name in above), match[2]])
            above.append((indent, match[2]))
            if match[2] not in ("name", "_target_"):
                out.append((key, match[3] or "", " ".join(comment)))
            comment = []
    return out


def headline(text: str) -> str:
    """The comment at the head of a configuration file."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


# --------------------------------------------------------------------------- metrics


def record(names: Iterable[str]) -> None:
    """Run objectives for two steps on every source that they take, and keep what they log."""
    known = json.loads(METRICS.read_text()) if METRICS.exists() else {}
    present = [d.name for d in declarations()]
    notes = load_notes()
    for name in names:
        found: dict[str, list[str]] = {"": sorted(set().union(*_logged(name, ())))}
        more = [INSTRUMENTS, *([ALL_INSTRUMENTS] if name == "dpo" else [])]
        for options in [*notes.get(name, {}).get("options", []), *more]:
            logged = set().union(*_logged(name, options.split()))
            found[options] = sorted(logged - set(found[""]))
        known[name] = found
        ordered = {n: known[n] for n in sorted(known) if n in present}
        METRICS.write_text(json.dumps(ordered, indent=1) + "\n")


def _logged(name: str, options: Sequence[str]) -> list[set[str]]:
    from hydra import compose

    from lit_pref.app.preflight import composing
    from lit_pref.app.run import run_job

    out: list[set[str]] = []
    another = any(o.startswith("task=") for o in options)  # it may have no offline data
    for source in ["onpolicy"] if another else SOURCES:
        with tempfile.TemporaryDirectory() as base:
            folder = Path(base) / "run"
            overrides = [f"objective={name}", f"data={source}", *SIZES, *TWO_STEPS[source]]
            with composing():
                cfg = compose("train", overrides=[*overrides, *options, f"paths.run_dir={folder}"])
            outcome = run_job(cfg, folder)
            if outcome.status == "refused":
                continue
            if outcome.exit_code:
                raise RuntimeError(f"{name}, data={source}: {outcome.reason}")
            with (folder / "metrics.csv").open() as file:
                out.append(set(next(csv.reader(file))))
    return out


def load_metrics() -> Recorded:
    """What ``record`` kept."""
    return json.loads(METRICS.read_text())


def shared_metrics(found: Sequence[Declaration], recorded: Recorded) -> list[str]:
    """Names that every objective with a policy logs."""
    policies = [d.name for d in found if d.kind.needs.policy and d.name in recorded]
    return _ordered(set.intersection(*(set(recorded[name][""]) for name in policies)))


def _ordered(names: Iterable[str]) -> list[str]:
    """In the order of the glossary."""
    order = {name: n for n, name in enumerate(GLOSSARY)}
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))


def metric_table(names: Iterable[str]) -> list[str]:
    """Names with their entries."""
    lines = ["| name | meaning | unit | healthy | otherwise |", "|---|---|---|---|---|"]
    for name in names:
        e = entry(name)
        if e is None:
            raise SystemExit(f"{name} is logged, but is not in lit_pref/metrics/glossary.py")
        cells = (e.meaning, e.unit, e.healthy, e.remedy)
        lines.append(f"| `{name}` | " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return lines


# --------------------------------------------------------------------------- pages


def load_notes() -> dict[str, Any]:
    """What was written by hand about each objective."""
    return OmegaConf.to_container(OmegaConf.load(NOTES)) or {}  # type: ignore[return-value]


def commands(declaration: Declaration) -> list[str]:
    """Commands of a page: one for every source that the objective takes."""
    needs = declaration.kind.needs
    takes = {
        "onpolicy": needs.policy,
        "offline": not needs.fresh,
        "mixed": needs.policy and not needs.fresh,
    }
    return [
        f"python train.py objective={declaration.name} data={source}"
        for source in SOURCES
        if takes[source]
    ]


def objective_page(
    declaration: Declaration,
    note: dict[str, Any],
    recorded: dict[str, list[str]],
    shared: Sequence[str],
) -> str:
    """The page of one objective.

    Args:
        declaration: the objective.
        note: its entry in notes.yaml.
        recorded: names that it logs, by options.
        shared: names that every objective logs.
    """
    name, kind = declaration.name, declaration.kind
    file = ROOT / "configs" / "objective" / f"{name}.yaml"
    text = file.read_text()
    source = f"{kind.__module__.replace('.', '/')}.py"
    lines = [
        f"# `{name}`", "", headline(text), "",
        f"Class `{kind.__name__}` in [`{source}`](../../{source}), family *{kind.family}*, "
        f"[arXiv {declaration.paper}](https://arxiv.org/abs/{declaration.paper}).",
        "", "## What it does", "", prose(kind.__doc__), "",
    ]  # fmt: skip
    for dotted, doc in losses_of(kind.__doc__):
        lines += [f"`{dotted}`:", "", doc, ""]
    lines += ["## Its place in the paper's table", "", *_place(declaration, note), ""]
    written = textwrap.fill(note.get("note", "").strip(), 100, break_long_words=False)
    lines += ["## On offline and on-policy data", "", written, ""]
    if kind.needs.policy:
        lines += ["[What learns on the token bandit](learning.md) has its numbers.", ""]
    lines += ["## Try it", "", *(f"    {c}" for c in commands(declaration)), ""]
    lines += ["## Keys", "", "| key | default | |", "|---|---|---|"]
    for key, default, comment in yaml_keys(text):
        shown = f"`{default}`" if default else ""
        comment = comment.replace("|", "\\|")
        lines.append(f"| `objective.{key}` | {shown} | {comment} |")
    return "\n".join([*lines, "", *_metrics(recorded, shared)]) + "\n"


def _place(declaration: Declaration, note: dict[str, Any]) -> list[str]:
    kind = declaration.kind
    needs = kind.needs
    if not needs.policy:
        sampling = "offline only, it trains no policy"
    else:
        sampling = "required" if needs.fresh else "either"
    here = [
        sampling,
        "allowed" if kind.reuse else "one pass as published",
        "yes" if kind.negative_gradient else "no",
    ]
    lines = [
        "| | on-policy sampling | sample reuse | negative gradient |", "|---|---|---|---|",
        f"| `{declaration.name}` here | {' | '.join(here)} |",
    ]  # fmt: skip
    for row in note.get("table1", []):
        method, *values = TABLE1[row]
        lines.append(f"| {method} in {PAPER} | {' | '.join(values)} |")
    if not note.get("table1"):
        lines += ["", f"{PAPER} does not name it; the row is what its class declares."]
    return lines


def _metrics(recorded: dict[str, list[str]], shared: Sequence[str]) -> list[str]:
    lines = ["## Metrics", ""]
    own = _ordered(set(recorded[""]) - set(shared))
    if own:
        lines += ["Of this objective and its data:", "", *metric_table(own), ""]
    for options, names in recorded.items():
        if options and names and not options.startswith(INSTRUMENTS):
            lines += [f"With `{options}` also:", "", *metric_table(_ordered(names)), ""]
    lines += ["In every run:", "", *metric_table(n for n in shared if n in recorded[""]), ""]
    if recorded.get(INSTRUMENTS):
        lines.append(f"More with `{INSTRUMENTS}`: [Instruments](../guide/instruments.md).")
    return lines


def pages() -> dict[Path, str]:
    """Every generated file with its text."""
    notes, recorded, found = load_notes(), load_metrics(), declarations()
    shared = shared_metrics(found, recorded)
    out = {
        FOLDER / "index.md": INDEX.format(table=markdown_table()),
        ROOT / "docs" / "guide" / "metrics.md": glossary_page(),
    }
    for declaration in found:
        name = declaration.name
        if name in recorded:
            page = objective_page(declaration, notes.get(name, {}), recorded[name], shared)
            out[FOLDER / f"{name}.md"] = page
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", nargs="*", metavar="NAME", help="run first; all by default")
    args = parser.parse_args()
    if args.record is not None:
        record(args.record or [d.name for d in declarations()])
    for path, text in pages().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
