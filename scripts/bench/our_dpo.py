"""Offline DPO with lit_pref on the fixed pairs: the work of the kit's trl_dpo.py."""

import time

import kit
from common import StepClock, emit, encode_pairs, forward_flops, load_pairs, model_dir, work_id

p = kit.flags(__doc__)
p.add_argument("--batch", type=int, default=8, help="pairs per step")
p.add_argument("--rows", type=int, default=512, help="pairs in the data set")
p.add_argument("--order", default="sequential", choices=["sequential", "random"])
p.add_argument(
    "--ref", default="cached", choices=["cached", "online"], help="cached: one pass first"
)
a = p.parse_args()
torch = kit.start(a)
t0 = time.time()
from transformers import AutoTokenizer  # noqa: E402

import lit_pref as lp  # noqa: E402
from lit_pref.types import Group, Prompt, Response  # noqa: E402

for name in ("DPO", "OfflineDataModule", "HFPolicy", "NativeSampler"):
    getattr(lp, name)  # names are imported when they are first used
import_s = time.time() - t0

tok = AutoTokenizer.from_pretrained(model_dir(a.model))
rows = load_pairs(a.model, tok)[: a.rows]
pairs = encode_pairs(rows, tok)
used = pairs[: max(a.steps * a.batch, a.batch)]  # the passes over the rest are not part of a step
groups = [
    Group(
        prompt=Prompt(id=i, text=row["prompt"], ids=prompt),
        responses=[
            Response(ids=chosen, text=row["chosen"], rank=0),
            Response(ids=rejected, text=row["rejected"], rank=1),
        ],
        source="offline",
    )
    for i, (row, (prompt, chosen, rejected)) in enumerate(zip(rows, used, strict=False))
]
size = a.batch if a.ref == "online" else a.steps * a.batch
if size > len(groups):
    raise SystemExit(f"--steps x --batch needs {size} pairs, there are {len(groups)}")
data = lp.OfflineDataModule(
    kit.make_task(tok, groups=groups), sampler=lp.NativeSampler(max_new_tokens=1), reward=None,
    prompts_per_round=size, responses_per_prompt=2, batch_size=a.batch,
    rounds=a.steps if a.ref == "online" else 1, micro_batch_tokens=a.micro or None,
    prompt_order="fixed" if a.order == "sequential" else "shuffled",
)  # fmt: skip
policy = kit.policy_of(a)
objective = lp.DPO(
    policy, reference=lp.FrozenReference(), beta=0.1,
    optimizer=lp.OptimizerSettings(lr=1e-5, weight_decay=0.0, clip_norm=1.0),
)  # fmt: skip
passes = []
annotate = objective.annotate


def timed(*args, **kwargs):
    start = time.perf_counter()
    out = annotate(*args, **kwargs)
    passes.append(time.perf_counter() - start)
    return out


objective.annotate = timed
clock = StepClock(a)
losses = kit.train(a, objective, data, clock)
timed_pairs = pairs[a.warm * a.batch : a.steps * a.batch]
lengths = [len(prompt) + len(c) for prompt, *both in timed_pairs for c in both]
completion = sum(len(c) + len(r) for _, c, r in timed_pairs)
flops = forward_flops(policy.model.config, lengths, completion) * (4 if a.ref == "online" else 3)
result = dict(
    bench="our_dpo", tag=a.tag, work=work_id("dpo", a, rows, "batch", "order"), gc=a.gc, bf16=a.bf16, ref=a.ref,
    path=policy.path, **clock.result(), pairs_s=a.batch * clock.n / clock.seconds, tok_s=sum(lengths) / clock.seconds,
    completion_share=completion / sum(lengths), loss_first=losses[0], loss_last=losses[-1], import_s=import_s,
    ref_pass_s=sum(passes), gflops=flops / clock.seconds / 1e9,
)  # fmt: skip
emit(result, a)
