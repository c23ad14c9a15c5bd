"""One command for the comparison table or the ladder, interleaved, as Markdown.

    export BENCH_KIT=/path/to/kit BENCH_TRL_PYTHON=/path/to/python-with-trl
    python scripts/bench/run.py table                  # every row: TRL, hand-written floor, ours
    python scripts/bench/run.py table --rows dpo_tiny,grpo_tiny --rounds 5
    python scripts/bench/run.py ladder --model tiny    # each of our switches on its own row

Every row is one run of the kit's compare.py on a quiet machine: commands in turn, medians, ratios
per round, and NOT QUOTABLE where others used the machine or the work differed. Results are kept as
JSON in --json FOLDER; what is there already is not run again. Write the text printed at the end
into docs/performance.md.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
DPO_FLOOR = "raw_dpo.py --path packed --share 1 --ref cached --mallopt 1"
SMALL, LARGE = "--model tiny --steps 23 --warm 3", "--model smollm2 --batch 2 --steps 6 --warm 1"
ON_TINY = "--model tiny --prompts 4 --G 8 --new 64 --steps 6 --warm 1"
ON_SMOL = "--model smollm2 --prompts 2 --G 4 --new 64 --steps 3 --warm 1"
GEN = "gen_lengths.py --model smollm2 --prompts 32 --G 4 --new 192 --steps 2 --warm 1"
# row: (base, floor or None, ours, what is compared, least ratio of ours to the floor, to the base);
# the base is TRL, for generation model.generate
TABLE = {
    "dpo_tiny": (
        f"trl_dpo.py {SMALL}", f"{DPO_FLOOR} {SMALL}", f"our_dpo.py {SMALL}", "step_s", 0.95, None,
    ),
    "dpo_tiny_online": (  # the reference step by step, as TRL does it: equal work before the first
        f"trl_dpo.py {SMALL}", None, f"our_dpo.py {SMALL} --ref online", "step_s", None, None,
    ),
    "dpo_smollm2": (
        f"trl_dpo.py {LARGE}", f"{DPO_FLOOR} {LARGE}", f"our_dpo.py {LARGE}", "step_s", 0.97, None,
    ),
    "dpo_smollm2_defaults": (
        f"trl_dpo.py {LARGE} --bf16 1 --gc 1", f"{DPO_FLOOR} {LARGE} --dtype bf16",
        f"our_dpo.py {LARGE} --bf16 -1", "step_s", None, 4.5,
    ),
    "grpo_tiny": (
        f"trl_online.py {ON_TINY}", f"raw_grpo.py {ON_TINY}", f"our_online.py {ON_TINY}",
        "step_s", 1.0, None,
    ),
    "grpo_smollm2": (
        f"trl_online.py {ON_SMOL}", f"raw_grpo.py {ON_SMOL}", f"our_online.py {ON_SMOL}",
        "step_s", 1.1, None,
    ),
    "generate_smollm2_auto": (
        f"{GEN} --engine hf", None, f"{GEN} --engine ours --sampling auto", "s_per_token", None, 1.8,
    ),
    "grpo_smollm2_auto": (
        f"trl_online.py {ON_SMOL}", f"raw_grpo.py {ON_SMOL}",
        f"our_online.py {ON_SMOL} --sampling auto", "step_s", 1.1, None,
    ),
    "generate_smollm2": (
        f"{GEN} --engine hf", None, f"{GEN} --engine ours", "s_per_token", None, 1.8,
    ),
}  # fmt: skip
# what a plain padded loop is turned into, one switch a row; then what is off by default
LADDER = {
    "padded, all logits, reference online": "--path padded --head all --ref online --mallopt 0",
    "+ logits of responses alone": "--path padded --ref online --mallopt 0",
    "+ reference once": "--path padded --mallopt 0",
    "+ packed rows": "--path packed --share 0 --mallopt 0",
    "+ prompts shared": "--path packed --mallopt 0",
    "+ memory kept: the default": "",
    "default, micro-batches of 512 tokens": "--micro 512",
    "default, logits in chunks made again": "--head chunks",
    "default, checkpointing": "--gc 1",
    "default, bf16 autocast": "--bf16 1",
}


def command(text, model=""):
    """A shell command of the kit or of ours, with the interpreter that can run it."""
    name, *rest = shlex.split(text)
    ours = (HERE / name).exists()
    python = sys.executable if ours else os.environ.get("BENCH_TRL_PYTHON", sys.executable)
    folder = HERE if ours else Path(os.environ["BENCH_KIT"])
    return shlex.join([python, str(folder / name), *rest, *shlex.split(model)])


def compare(name, commands, a):
    """The result of the kit's compare.py, run now unless it is there already."""
    path = Path(a.json) / f"{name}.json"
    if not path.exists() or a.again:
        path.parent.mkdir(parents=True, exist_ok=True)
        words = [
            sys.executable, str(Path(os.environ["BENCH_KIT"]) / "compare.py"), "--rounds",
            str(a.rounds), "--json", str(path), "--limit", "1800", "--swap",
        ]  # fmt: skip
        threads = f" --threads {a.threads}" if a.threads else ""
        words += [f"{key}={text}{threads}" for key, text in commands.items()]
        print(f"== {name}", flush=True)
        subprocess.run(words, check=False)
    return json.loads(path.read_text())


def spread(values):
    if not values:
        return "-"
    values = sorted(values)
    middle = values[len(values) // 2]
    return f"{middle:.2f} ({values[0]:.2f} to {values[-1]:.2f})"


def ratios(found, key, slow, fast):
    """How many times less of ``key`` the run ``fast`` needed than ``slow``, round by round."""
    runs = found["runs"]
    pairs = zip(runs.get(slow, []), runs.get(fast, []), strict=False)
    return [x[key] / y[key] for x, y in pairs]


def note(found):
    loss = {n: r[-1].get("loss_last") for n, r in found["runs"].items() if r}
    known = [v for v in loss.values() if v is not None]
    equal = len(known) < 2 or max(known) - min(known) < 1e-3
    words = [] if found["quotable"] else ["not quotable"]
    words += [] if equal else [f"losses differ: {loss}"]
    return "; ".join(words)


def table(a):
    lines = [
        "| work | floor to base | ours to base | ours to floor | required "
        "| peak memory: floor to base | ours to base | ours to floor | first step: ours to base | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in a.rows.split(",") if a.rows else TABLE:
        base, floor, ours, key, to_floor, to_base = TABLE[name]
        texts = {"base": base, "floor": floor, "ours": ours}
        found = compare(name, {n: command(t) for n, t in texts.items() if t}, a)
        if any(not found["runs"].get(n) for n, t in texts.items() if t):
            lines.append(f"| {name} | failed: {str(found['failure']).splitlines()[0]} |" + " |" * 8)
            continue
        pairs = [("base", "floor"), ("base", "ours"), ("floor", "ours")]
        cells = [ratios(found, key, *pair) for pair in pairs]
        memory = [ratios(found, "peak_rss_mb", fast, slow) for slow, fast in pairs]
        need = f"{to_floor} to floor" if to_floor else f"{to_base} to base" if to_base else "-"
        first = ratios(found, "first_step_from_proc_s", "ours", "base")
        words = [*map(spread, cells), need, *map(spread, memory), spread(first), note(found)]
        lines.append(f"| {name} | " + " | ".join(words) + " |")
    return lines


def ladder(a):
    size = SMALL if a.model == "tiny" else LARGE.replace("smollm2", a.model)
    size += f" --steps {a.steps}" if a.steps else ""
    rows = {n: more for n, more in LADDER.items() if not (a.skip and a.skip in n)}
    commands = {"TRL": command(f"trl_dpo.py {size}")}
    commands |= {name: command(f"our_dpo.py {size} {more}") for name, more in rows.items()}
    found = compare(f"ladder_{a.model}", commands, a)
    lines = ["| | step s | tokens/s | to TRL | peak MB |", "|---|---|---|---|---|"]
    for name, runs in found["runs"].items():
        if not runs:
            lines.append(f"| {name} | failed | | | |")
            continue
        values = {k: spread([r[k] for r in runs]) for k in ("step_s", "tok_s", "peak_rss_mb")}
        gain = "1" if name == "TRL" else spread(ratios(found, "step_s", "TRL", name))
        lines.append(
            f"| {name} | {values['step_s']} | {values['tok_s']} | {gain} | {values['peak_rss_mb']} |"
        )
    return [*lines, "", note(found)]


def machine():
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        found = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
        model = found[0].split(":")[1].strip() if found else model
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "lightning"))
    return f"{datetime.date.today()}, {model}, {os.cpu_count()} CPUs, {packages}, TRL 1.16.0"


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("what", choices=["table", "ladder"])
    p.add_argument("--rows", default="", help=f"of the table: {','.join(TABLE)}")
    p.add_argument("--model", default="tiny", help="of the ladder")
    p.add_argument("--steps", type=int, default=0, help="of the ladder; 0: as in the table")
    p.add_argument("--skip", default="", help="rows of the ladder with these letters are left out")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=0, help="0: all of the machine")
    p.add_argument("--json", default="bench_results", help="folder of results")
    p.add_argument("--again", action="store_true", help="run what is there already again")
    a = p.parse_args()
    if not os.path.exists(os.path.join(os.environ.get("BENCH_KIT", ""), "compare.py")):
        p.error("set BENCH_KIT to the folder of the benchmark kit (it has compare.py)")
    lines = table(a) if a.what == "table" else ladder(a)
    print("\n" + machine() + f", {a.rounds} interleaved rounds: median (least to most)\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
