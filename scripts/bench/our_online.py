"""On-policy training with lit_pref (grpo | rloo | onlinedpo): the work of the kit's trl_online.py."""

import kit
from common import Phases, StepClock, emit, load_prompts, model_dir, work_id

p = kit.flags(__doc__, steps=5, warm=1, log_every=1)
p.add_argument("--algo", default="grpo", choices=["grpo", "rloo", "onlinedpo"])
p.add_argument("--prompts", type=int, default=4, help="prompts per step")
p.add_argument("--G", type=int, default=8, help="responses per prompt (onlinedpo: always 2)")
p.add_argument("--new", type=int, default=64, help="new tokens per response")
p.add_argument("--rows", type=int, default=128, help="responses decoded at the same time")
p.add_argument(
    "--sampling", default="policy", choices=["policy", "bfloat16", "auto"], help="sampler.precision"
)
p.add_argument("--iters", type=int, default=1, help="passes over each round (data.reuse)")
p.add_argument("--split", type=int, default=1, help="time the phases")
a = p.parse_args()
if a.algo == "onlinedpo":
    a.G = 2
torch = kit.start(a)
from transformers import AutoTokenizer  # noqa: E402

import lit_pref as lp  # noqa: E402
from lit_pref.types import Prompt  # noqa: E402

tok = AutoTokenizer.from_pretrained(model_dir(a.model))
texts = load_prompts(a.model, tok)
if a.steps % a.iters:
    p.error(f"--steps must be a multiple of --iters, got {a.steps} and {a.iters}")
if a.steps * a.prompts > len(texts):
    p.error(f"--steps x --prompts needs {a.steps * a.prompts} prompts, there are {len(texts)}")


class Length:
    """Closer to 150 characters is better."""

    name, version = "length", "1"

    def score(self, groups):
        return [-abs(len(r.text) - 150) / 150 for g in groups for r in g.responses]


prompts = [Prompt(id=i, text=t, ids=tok(t)["input_ids"]) for i, t in enumerate(texts)]
sampler = lp.NativeSampler(max_new_tokens=a.new, max_rows=a.rows, precision=a.sampling)
data = lp.OnPolicyDataModule(
    kit.make_task(tok, prompts=prompts, new=a.new), sampler=sampler, reward=Length(),
    prompts_per_round=a.prompts, responses_per_prompt=a.G, batch_size=a.prompts, rounds=a.steps // a.iters, reuse=a.iters, prompt_order="fixed",
    micro_batch_tokens=a.micro or None,
)  # fmt: skip
settings = lp.OptimizerSettings(lr=1e-6, weight_decay=0.0, clip_norm=1.0)
policy = kit.policy_of(a)
if a.algo == "grpo":
    objective = lp.GRPO(policy, optimizer=settings)
elif a.algo == "rloo":
    objective = lp.RLOO(policy, reference=lp.FrozenReference(), kl_coef=0.05, optimizer=settings)
else:
    objective = lp.DPO(policy, reference=lp.FrozenReference(), beta=0.1, optimizer=settings)
clock = StepClock(a)
phases = Phases(clock)
if a.split:
    phases.wrap(sampler, "sample", "generate")
    phases.wrap(objective, "annotate", "annotate")
    phases.wrap(objective, "training_step", "training_step")
losses = kit.train(a, objective, data, clock)
generated = a.prompts * a.G * a.new * clock.n / a.iters
result = dict(
    bench="our_online", algo=a.algo, tag=a.tag, work=work_id("online_" + a.algo, a, texts, "prompts", "G", "new"), gc=a.gc, iters=a.iters,
    bf16=a.bf16, path=policy.path, **clock.result(), e2e_tok_s=generated / clock.seconds, **phases.shares(),
    loss_last=losses[-1],
)  # fmt: skip
if a.split:
    result["gen_tok_s"] = generated / phases.seconds["generate"]
emit(result, a)
