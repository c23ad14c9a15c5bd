"""What our runners share: the kit's flags, data and clocks, and a run as users have it.

The kit is the folder with the TRL runners and hand-written floors; BENCH_KIT says where it is.
"""

import os
import sys
import tempfile

KIT = os.environ.get("BENCH_KIT", "")
if not os.path.exists(os.path.join(KIT, "common.py")):
    sys.exit("set BENCH_KIT to the folder of the benchmark kit (it has common.py)")
sys.path.insert(0, KIT)

import common  # noqa: E402  (it notes when the process started: before torch)

PRECISION = {0: "32-true", 1: "bf16-mixed"}
AUTO = -1


def flags(doc, **defaults):
    p = common.parser(doc, **defaults)
    p.add_argument("--bf16", type=int, default=0, help="bf16 autocast; -1: where it is faster")
    p.add_argument("--gc", type=int, default=0, help="gradient checkpointing")
    p.add_argument("--path", default="auto", choices=["auto", "packed", "padded"])
    p.add_argument(
        "--mallopt", type=int, default=1, help="keep freed memory, as lit-pref train does"
    )
    p.add_argument(
        "--micro", type=int, default=0, help="tokens of a micro-batch; 0: the whole batch"
    )
    p.add_argument("--log_every", type=int, default=10)
    p.add_argument("--share", type=int, default=1, help="0: packed rows repeat prompts")
    p.add_argument(
        "--head", default="auto", choices=["auto", "all", "chunks"],
        help="all: logits of every position, by the model itself; chunks: made again in backward",
    )  # fmt: skip
    p.add_argument("--lora", type=int, default=0, help="rank of adapters; 0: all weights")
    return p


def start(a):
    """Threads and allocator; torch."""
    if a.mallopt and a.device == "cpu":
        from lit_pref.engine.allocator import keep_freed_memory

        keep_freed_memory()
    torch = common.setup_torch(a)
    if a.bf16 == AUTO:
        from lit_pref.app.precision import faster_precision

        a.bf16 = int(faster_precision(torch.device(a.device)) == PRECISION[1])
    return torch


def policy_of(a):
    from lit_pref.policies import HFPolicy, LoRA, hf

    lora = LoRA(rank=a.lora) if a.lora else None
    spec = hf(common.model_dir(a.model))
    policy = HFPolicy(spec, path=a.path, gradient_checkpointing=bool(a.gc), lora=lora)
    without_savings(a, policy)
    return policy


def without_savings(a, policy):
    """Take away what is always on in the library, to measure what it saves."""
    from functools import partial

    from lit_pref.engine import forward

    if not a.share:
        forward.pack = partial(repeating, forward.pack)
    if a.head == "all":
        policy.load().plain_head = False
    elif a.head == "chunks":
        tokens = 64  # of a chunk; eight chunks and more are not kept
        size = 8 * tokens * policy.spec.vocab_size * 4
        forward.head_stats = partial(forward.head_stats, budget_bytes=size)


def repeating(pack, tokens, **options):
    """A packed row in which each response has a prompt of its own."""
    import torch

    from lit_pref.types import FlatTokens

    prompts = tokens.prompt_ids.split(tokens.prompt_lengths)
    apart = FlatTokens(
        prompt_ids=torch.cat([prompts[p] for p in tokens.prompt_of]),
        prompt_lengths=[tokens.prompt_lengths[p] for p in tokens.prompt_of],
        response_ids=tokens.response_ids,
        lengths=tokens.lengths,
        prompt_of=list(range(tokens.num_responses)),
    )
    return pack(apart, **options)


def train(a, objective, data, clock):
    """``Trainer.fit`` with the callbacks, loggers and files of ``lit-pref train``; the losses."""
    import logging

    import lightning as L
    from lightning.pytorch.callbacks import Callback

    from lit_pref.callbacks import MetricsCSV, RunFiles, RunProgress

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)

    class Clock(Callback):
        def on_train_batch_end(self, *_):
            clock.end()

    losses, add_total = [], objective.window.add_total

    def keep(name, value, weight):
        if name == "loss":
            losses.append(value.detach())  # read after training: no wait here
        add_total(name, value, weight)

    objective.window.add_total = keep
    with tempfile.TemporaryDirectory() as folder:
        options = data.trainer_kwargs()
        callbacks = [*options.pop("callbacks"), RunProgress(), RunFiles(folder), Clock()]
        L.Trainer(
            **options, callbacks=callbacks, logger=[MetricsCSV(folder)], default_root_dir=folder,
            accelerator="gpu" if a.device == "cuda" else "cpu", devices=1, precision=PRECISION[a.bf16],
            log_every_n_steps=a.log_every, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(objective, datamodule=data)  # fmt: skip
    return [float(x) for x in losses]


def make_task(tokenizer, *, prompts=(), groups=None, new=1):
    """Given token ids as a task; no end of sequence, so that the work is fixed."""
    from lit_pref.tasks.base import Task

    class Given(Task):
        name, eos_ids, max_new_tokens = "bench", (), new

        def prompts(self):
            return list(prompts)

        def validation(self):
            return []

        def offline(self):
            return groups

        def decode(self, ids):
            return tokenizer.decode(ids, skip_special_tokens=True)

    return Given()
