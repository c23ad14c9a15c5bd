"""How time and memory of a step grow, one size at a time; needs no benchmark kit.

    python scripts/bench/scaling.py --picture docs/performance_scaling.png

A DPO step (reference pass and update on stored responses) and a GRPO step (sampling and update)
of a small Llama go through Trainer.fit. One of response length, prompt length, responses per
prompt, vocabulary and batch is doubled at a time. The picture and a table of exponents (of power
laws fitted to time and memory, beside that of the floating-point operations) are the result.
"""

import argparse
import ctypes
import importlib.util
import itertools
import logging
import math
import tempfile
import time
from pathlib import Path

START = {"response": 64, "prompt": 64, "K": 4, "vocabulary": 4096, "batch": 4}
AXES = {
    "response": ("response length (tokens)", [32, 64, 128, 256, 512]),
    "prompt": ("prompt length (tokens)", [32, 64, 128, 256, 512]),
    "K": ("responses per prompt", [2, 4, 8, 16]),
    "vocabulary": ("vocabulary (tokens)", [4096, 8192, 16384, 32768]),
    "batch": ("batch (prompts)", [2, 4, 8, 16]),
}
HIDDEN, INNER, LAYERS, HEADS = 128, 344, 2, 4
STEPS = 3
CLEAR = "/proc/self/clear_refs"


def work(name, s):
    """Floating-point operations of a step: prompts once, logits for responses, causal attention."""
    body = 2 * LAYERS * (4 * HIDDEN**2 + 3 * HIDDEN * INNER)
    head = 2 * HIDDEN * s["vocabulary"]
    answers = s["batch"] * s["K"] * s["response"]
    tokens = s["batch"] * s["prompt"] + answers
    seen = s["batch"] * s["prompt"] ** 2 / 2 + answers * (s["prompt"] + s["response"] / 2)
    forward = body * tokens + head * answers + 4 * LAYERS * HIDDEN * seen
    return forward * 4  # an update is three, the reference pass or the sampling one


def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(key))


def measure(name, s):
    """(seconds of a step, bytes that it needs above what stays)."""
    import lightning as L
    import torch
    from transformers import LlamaConfig

    import lit_pref as lp
    from lit_pref.policies.models import random_model
    from lit_pref.tasks.base import Task
    from lit_pref.types import Group, Prompt, Response

    config = LlamaConfig(
        vocab_size=s["vocabulary"], hidden_size=HIDDEN, intermediate_size=INNER,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS,
        max_position_embeddings=4096, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    draw = torch.Generator().manual_seed(0)

    def ids(count):
        return torch.randint(1, s["vocabulary"], (count,), generator=draw).tolist()

    count = s["batch"] * STEPS
    prompts = [Prompt(id=i, text=str(i), ids=ids(s["prompt"])) for i in range(count)]
    groups = [
        Group(prompt=p, source="offline", responses=[
            Response(ids=ids(s["response"]), text="", reward=float(k), rank=k)
            for k in range(s["K"])
        ])
        for p in prompts
    ]  # fmt: skip

    class Given(Task):
        name, eos_ids, max_new_tokens = "scaling", (), s["response"]

        def prompts(self):
            return prompts

        def validation(self):
            return []

        def offline(self):
            return groups

        def decode(self, ids):
            return ""

    class First:
        """A reward that differs between responses."""

        name, version = "first", "1"

        def score(self, groups):
            return [float(r.ids[0]) for g in groups for r in g.responses]

    sizes = {
        "sampler": lp.NativeSampler(max_new_tokens=s["response"]), "batch_size": s["batch"],
        "prompts_per_round": s["batch"], "responses_per_prompt": s["K"], "rounds": STEPS,
    }  # fmt: skip
    policy = lp.HFPolicy(random_model("scaling", config, seed=0), path="packed")
    if name == "DPO":
        data = lp.OfflineDataModule(Given(), reward=None, **sizes)
        objective = lp.DPO(policy, reference=lp.FrozenReference(), beta=0.1, pairs="all")
    else:
        data = lp.OnPolicyDataModule(Given(), reward=First(), **sizes)
        objective = lp.GRPO(policy)
    ends, base, peaks = [], [], []

    class Clock(L.Callback):
        def on_train_batch_end(self, *_):
            if ends:
                peaks.append(resident("VmHWM") - base[-1])
            objective.zero_grad(set_to_none=True)
            Path(CLEAR).write_text("5")  # the peak counts from here
            base.append(resident("VmRSS"))
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        options = data.trainer_kwargs()
        L.Trainer(
            **options | {"callbacks": [*options["callbacks"], Clock()]}, accelerator="cpu",
            logger=False, default_root_dir=folder, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        ).fit(objective, datamodule=data)  # fmt: skip
    return min(b - a for a, b in itertools.pairwise(ends)), max(peaks)


def slope(sizes, values):
    """Exponent of a power law through all sizes, by least squares of logarithms."""
    x, y = ([math.log(v) for v in values] for values in (sizes, values))
    middle = sum(x) / len(x)
    across = sum((a - middle) * b for a, b in zip(x, y, strict=True))
    return across / sum((a - middle) ** 2 for a in x)


def draw(found, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(2, len(AXES), figsize=(15, 6), sharey="row", layout="constrained")
    marks = {"DPO": ("o", "-", "black"), "GRPO": ("s", "--", "0.55")}
    for column, (axis, (label, sizes)) in enumerate(AXES.items()):
        for name, (mark, line, colour) in marks.items():
            times, bytes_ = zip(*found[axis, name], strict=True)
            for row, values in ((0, times), (1, [b / 2**20 for b in bytes_])):
                grid[row, column].loglog(
                    sizes, values, line, marker=mark, color=colour, label=f"{name} step"
                )
            wanted = [work(name, START | {axis: n}) for n in sizes]
            scale = times[-1] / wanted[-1]
            if name == "DPO":
                grid[0, column].loglog(
                    sizes, [w * scale for w in wanted], ":", color="black", label="work (DPO)"
                )
        for row in (0, 1):
            grid[row, column].set_xticks(sizes, [str(n) for n in sizes])
            grid[row, column].minorticks_off()
            grid[row, column].grid(alpha=0.3)
        grid[1, column].set_xlabel(label)
    grid[0, 0].set_ylabel("time of a step (s)")
    grid[1, 0].set_ylabel("memory of a step (MiB)")
    grid[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--picture", type=Path, default=Path("performance_scaling.png"))
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--repeats", type=int, default=1, help="runs of each size; the fastest counts")
    a = p.parse_args()
    if importlib.util.find_spec("matplotlib") is None:  # before minutes of measuring
        p.error('the picture needs matplotlib: pip install -e ".[plots]"')
    import lightning  # noqa: F401  (it sets the levels of its loggers)
    import torch

    torch.set_num_threads(a.threads)
    libc = ctypes.CDLL("libc.so.6")  # freed blocks leave the process, so that its size is the need
    libc.mallopt(-3, 256 << 10), libc.mallopt(-1, 256 << 10)
    for name in ("lightning.pytorch", "lightning.fabric", "lit_pref"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import warnings

    warnings.filterwarnings("ignore")
    measure("DPO", START), measure("GRPO", START)  # what is made once, is made
    found = {}
    for axis, (_, sizes) in AXES.items():
        for name in ("DPO", "GRPO"):
            runs = [[measure(name, START | {axis: n}) for _ in range(a.repeats)] for n in sizes]
            found[axis, name] = [(min(t for t, _ in r), min(b for _, b in r)) for r in runs]
            print(axis, name, [(round(t, 3), b >> 20) for t, b in found[axis, name]], flush=True)
    draw(found, a.picture)
    print("| size | exponent of the work | DPO time | DPO memory | GRPO time | GRPO memory |")
    print("|---|---|---|---|---|---|")
    for axis, (label, sizes) in AXES.items():
        cells = [slope(sizes, [work("DPO", START | {axis: n}) for n in sizes])]
        for name in ("DPO", "GRPO"):
            times, bytes_ = zip(*found[axis, name], strict=True)
            cells += [slope(sizes, times), slope(sizes, bytes_)]
        print(
            f"| {label}, {sizes[0]} to {sizes[-1]} | "
            + " | ".join(f"{c:.2f}" for c in cells)
            + " |"
        )


if __name__ == "__main__":
    main()
