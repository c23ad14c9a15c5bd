"""What "learns on the token bandit" means. Fixed before the first run; see docs/objectives/learning.md.

Every objective with the published defaults of its YAML trains on-policy on reward r1 from the same
initial policy (true reward 0.043 on the validation prompts). It *learns* when the true reward at the
end is higher than at the start by at least ``MARGIN``. Nothing here is tuned to an objective.
"""

SEEDS = (101, 102, 103)
CI_SEED = 101
ROUNDS = 40
MARGIN = 0.05
OVERRIDES = (
    "task=token_bandit",
    "task.reward=r1",
    "model=gpt_nano",
    "data=onpolicy",
    "data.prompts_per_round=10",
    "data.responses_per_prompt=10",
    "data.batch_size=10",
    "data.reuse=1",
    f"data.rounds={ROUNDS}",
    "optimizer=adamw",
    "optimizer.lr=1e-3",
    "callbacks=minimal",
    "export=false",
)
