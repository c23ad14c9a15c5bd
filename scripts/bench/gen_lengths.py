"""Sampling with lengths as they come: our sampler or ``model.generate``, the same chat prompts.

Answers end where the model ends them, so the two draw different tokens; what is compared is tokens
a second, counted up to the end of each answer.
"""

import contextlib
import json
from importlib.resources import files

import kit
from common import StepClock, emit, model_dir, work_id

p = kit.flags(__doc__, steps=3, warm=1)
p.add_argument("--engine", default="ours", choices=["ours", "hf"])
p.add_argument("--prompts", type=int, default=32)
p.add_argument("--G", type=int, default=4)
p.add_argument("--new", type=int, default=256, help="most tokens of an answer")
p.add_argument("--rows", type=int, default=128, help="answers decoded at the same time")
p.add_argument(
    "--sampling", default="policy", choices=["policy", "bfloat16", "auto"], help="sampler.precision"
)
a = p.parse_args()
if a.engine == "hf":
    a.mallopt = 0  # as its users run it
torch = kit.start(a)
from transformers import AutoTokenizer  # noqa: E402

tok = AutoTokenizer.from_pretrained(model_dir(a.model), padding_side="left")
lines = files("lit_pref.tasks").joinpath("files/prompts.jsonl").read_text().splitlines()
texts = [json.loads(line)["prompt"] for line in lines]
if len(texts) < a.prompts:
    p.error(f"--prompts {a.prompts}: there are {len(texts)}")
ids = [
    tok.apply_chat_template(
        [{"role": "user", "content": t}], add_generation_prompt=True, return_dict=False
    )
    for t in texts
]
ends = {tok.eos_token_id}


def ours():
    import lit_pref as lp
    from lit_pref.types import Prompt

    policy = kit.policy_of(a).load().eval().to(a.device)
    sampler = lp.NativeSampler(max_new_tokens=a.new, max_rows=a.rows, precision=a.sampling)
    autocast = torch.autocast(a.device, torch.bfloat16) if a.bf16 else contextlib.nullcontext()

    def step(n):
        prompts = [Prompt(id=i, text=texts[i], ids=ids[i]) for i in range(a.prompts)]
        with autocast:
            groups = sampler.sample(
                policy, prompts, key=(0, "bench", n), occurrences=[0] * len(prompts), responses=a.G,
                end_ids=ends,
            )  # fmt: skip
        return [len(r.ids) for g in groups for r in g.responses]

    return step


def hugging_face():
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if a.bf16 else torch.float32
    model = AutoModelForCausalLM.from_pretrained(model_dir(a.model), dtype=dtype)
    model = model.to(a.device).eval()

    @torch.inference_mode()
    def step(n):
        torch.manual_seed(n)
        rows = [ids[i] for i in range(a.prompts) for _ in range(a.G)]
        x = tok.pad({"input_ids": rows}, return_tensors="pt").to(a.device)
        out = model.generate(
            **x, max_new_tokens=a.new, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            pad_token_id=tok.pad_token_id, eos_token_id=tok.eos_token_id,
        )  # fmt: skip
        lengths = []
        for row in out[:, x["input_ids"].shape[1] :].tolist():
            end = next((k for k, t in enumerate(row) if t in ends), len(row) - 1)
            lengths.append(end + 1)
        return lengths

    return step


step = ours() if a.engine == "ours" else hugging_face()
clock = StepClock(a)
lengths = []
for n in range(a.steps):
    found = step(n)
    lengths += found if clock.timing else []
    clock.end()
emit(
    dict(
        bench="gen_lengths", tag=a.tag, engine=a.engine, bf16=a.bf16,
        work=work_id("gen_lengths", a, ids[: a.prompts], "prompts", "G", "new"),
        **clock.result(), gen_tok_s=sum(lengths) / clock.seconds,
        mean_length=sum(lengths) / len(lengths),
        cut_share=sum(n == a.new for n in lengths) / len(lengths),
        s_per_token=clock.seconds / sum(lengths),
    ),
    a,
)  # fmt: skip
