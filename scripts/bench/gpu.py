"""What a GPU does with what only a GPU does: is it right, and is it faster? One command, minutes.

    python scripts/bench/gpu.py                    # a random Llama of SmolLM2-135M's shape, bf16
    python scripts/bench/gpu.py --layers 4 --dtype float32 --rounds 5

1. The tests that need a GPU (pytest -m gpu).
2. Training forward and backward of packed rows: one attention kernel for the row, against one call
   per response, against padded rows.
3. Decoding: steps recorded and replayed, against steps made one by one, against model.generate.

Commands take turns; printed are medians and the ratios of each round. Without a GPU (--device cpu)
the first two ways of 2 and 3 are the same, so their ratio is about 1: that tries the script alone.
"""

import argparse
import statistics
import subprocess
import sys
import time

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from lit_pref.engine import attention
from lit_pref.policies.causal_lm import HFPolicy
from lit_pref.policies.spec import ModelSpec
from lit_pref.sampling.native import NativeSampler
from lit_pref.types import FlatTokens, Prompt

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--device", default="cuda")
parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
parser.add_argument("--layers", type=int, default=30)
parser.add_argument("--width", type=int, default=576)
parser.add_argument("--vocab", type=int, default=49152)
parser.add_argument("--prompts", type=int, default=8)
parser.add_argument("--responses", type=int, default=8)
parser.add_argument("--new", type=int, default=128, help="tokens of a response")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--tests", type=int, default=1, help="0: leave them out")
a = parser.parse_args()
DEVICE, DTYPE = torch.device(a.device), getattr(torch, a.dtype)


def policy(path="auto"):
    heads = a.width // 64
    config = LlamaConfig(
        hidden_size=a.width, num_hidden_layers=a.layers, num_attention_heads=heads,
        num_key_value_heads=3 if heads % 3 == 0 else 1, intermediate_size=a.width * 8 // 3,
        vocab_size=a.vocab, max_position_embeddings=4096,
    )  # fmt: skip

    def load():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).to(DTYPE)

    spec = ModelSpec(
        name="llama", tokenizer=None, eos_ids=(), pad_id=0, context_length=4096,
        vocab_size=a.vocab, load=load, fingerprint="llama",
    )  # fmt: skip
    return HFPolicy(spec, path=path).load().to(DEVICE)


def batch():
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(32, 257, (a.prompts,), generator=draw).tolist()
    answers = torch.randint(a.new // 4, a.new + 1, (a.prompts * a.responses,), generator=draw)
    lengths = answers.tolist()
    ids = torch.randint(1, a.vocab, (sum(prompts) + sum(lengths),), generator=draw).to(DEVICE)
    owners = [p for p in range(a.prompts) for _ in range(a.responses)]
    return FlatTokens(ids[: sum(prompts)], prompts, ids[sum(prompts) :], lengths, owners)


def seconds(run):
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(title, ways):
    """Seconds of each way, in turn; the first call of each compiles and is not counted."""
    for run in ways.values():
        run()
    taken = {name: [] for name in ways}
    peaks = dict.fromkeys(ways, 0)
    for _ in range(a.rounds):
        for name, run in ways.items():
            if DEVICE.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            taken[name].append(seconds(run))
            if DEVICE.type == "cuda":
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated())
    print(f"\n{title}")
    base = next(iter(ways))
    for name, times in taken.items():
        ratios = [b / t for b, t in zip(taken[base], times, strict=True)]
        peak = (
            f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if a.device == "cuda" else ""
        )
        print(
            f"  {name}: {1000 * statistics.median(times):.1f} ms, to {base} "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}){peak}"
        )


def training():
    flat, packed, padded = batch(), policy("packed"), policy("padded")
    weights = torch.linspace(-1, 1, len(flat.response_ids), device=DEVICE)

    def step(model, many):
        attention.MANY_CALLS = many
        model.zero_grad(set_to_none=True)
        (model(flat).logps * weights).sum().backward()

    compare(
        f"forward and backward, {a.prompts} prompts x {a.responses} responses, "
        f"{flat.num_tokens} tokens",
        {
            "a call per response": lambda: step(packed, 10**9),
            "one kernel": lambda: step(packed, 0),
            "padded": lambda: step(padded, 10**9),
        },
    )


def decoding():
    model = policy().eval()
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(1, a.vocab, (a.prompts, 64), generator=draw)
    prompts = [Prompt(id=i, text="", ids=row) for i, row in enumerate(ids.tolist())]

    def sample(graphs):
        sampler = NativeSampler(max_new_tokens=a.new, cuda_graphs=graphs)
        places = [0] * a.prompts
        sampler.sample(model, prompts, key=("b",), occurrences=places, responses=a.responses)

    def generate():
        with torch.no_grad():
            model.model.generate(
                ids.repeat_interleave(a.responses, 0).to(DEVICE), do_sample=True, top_k=0,
                max_new_tokens=a.new, min_new_tokens=a.new, pad_token_id=0,
            )  # fmt: skip

    compare(
        f"decoding, {a.prompts} prompts x {a.responses} responses x {a.new} tokens",
        {
            "step by step": lambda: sample(False),
            "recorded": lambda: sample(True),
            "model.generate": generate,
        },
    )


def main():
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("lit_pref").setLevel(logging.INFO)
    where = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, {a.dtype}, {a.layers} layers of {a.width}")
    failed = 0
    if a.tests:
        failed = subprocess.call(
            [sys.executable, "-m", "pytest", "-q", "-n0", "-m", "gpu", "tests"]
        )
    training()
    decoding()
    return failed


if __name__ == "__main__":
    sys.exit(main())
