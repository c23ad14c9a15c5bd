"""Sampling alone with lit_pref: the work of the kit's raw_gen.py (a fixed number of new tokens)."""

import contextlib

import kit
from common import StepClock, emit, load_prompts, model_dir, work_id

p = kit.flags(__doc__, steps=4, warm=1)
p.add_argument("--prompts", type=int, default=4)
p.add_argument("--G", type=int, default=8)
p.add_argument("--new", type=int, default=64)
p.add_argument("--rows", type=int, default=128, help="responses decoded at the same time")
a = p.parse_args()
torch = kit.start(a)
from transformers import AutoTokenizer  # noqa: E402

import lit_pref as lp  # noqa: E402
from lit_pref.types import Prompt  # noqa: E402

tok = AutoTokenizer.from_pretrained(model_dir(a.model))
texts = load_prompts(a.model, tok)
policy = kit.policy_of(a).load().eval().to(a.device)
sampler = lp.NativeSampler(max_new_tokens=a.new, max_rows=a.rows)
clock = StepClock(a)
autocast = torch.autocast(a.device, torch.bfloat16) if a.bf16 else contextlib.nullcontext()
for step in range(a.steps):
    batch = texts[step * a.prompts : (step + 1) * a.prompts]
    prompts = [Prompt(id=i, text=t, ids=tok(t)["input_ids"]) for i, t in enumerate(batch)]
    with autocast:
        sampler.sample(
            policy, prompts, key=(0, "bench", step), occurrences=[0] * len(prompts), responses=a.G
        )
    clock.end()
emit(
    dict(
        bench="our_gen", tag=a.tag, work=work_id("gen", a, texts, "prompts", "G", "new"), bf16=a.bf16, **clock.result(),
        gen_tok_s=a.prompts * a.G * a.new * clock.n / clock.seconds,
        ms_per_token_step=1000 * clock.seconds / clock.n / a.new,
    ),
    a,
)  # fmt: skip
