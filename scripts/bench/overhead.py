"""What the loop costs: a step of ``lit-pref train`` against the same step without Lightning.

    python scripts/bench/overhead.py                 # offline DPO, a small Llama
    python scripts/bench/overhead.py data.batch_size=4 callbacks=minimal

After every step of an ordinary run (default callbacks, loggers, files) the same batch goes through
a copy of the model in a bare loop: forward, DPO loss, backward, clip, AdamW. Both are timed step by
step, in seconds of the processor, which company on the machine disturbs least; use one thread
(OMP_NUM_THREADS=1). Printed: medians, and the difference in ms.
"""

import statistics
import sys
import tempfile
import time

from lit_pref.engine.allocator import keep_freed_memory

keep_freed_memory()

import lightning as L  # noqa: E402
import torch  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from lit_pref.app.build import build, trainer_of  # noqa: E402
from lit_pref.app.preflight import compose_config, composing  # noqa: E402

STEPS, WARM = 400, 40
RUN = [
    "objective=dpo", "data=offline", "task=text", "model=tiny", "data.batch_size=2",
    "task.pairs=docs/examples/pairs.jsonl", f"data.reuse={STEPS}", "export=false",
    f"trainer.max_steps={STEPS}", "paths.run_dir=.",
]  # fmt: skip


class Bare(L.Callback):
    """Does each batch again, on a copy, with nothing around it."""

    def __init__(self):
        self.ours, self.bare = [], []
        self.ended = None

    def on_train_start(self, trainer, module):
        self.policy = module.policy.frozen_copy().requires_grad_(True).train()
        self.weights = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = module.optimizer_settings.build([{"params": self.weights}])
        self.clip = module.optimizer_settings.clip_norm
        self.beta = module.beta

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        now = time.process_time()
        if self.ended is not None:
            self.ours.append(now - self.ended)
            self.bare.append(self.step(batch))
        self.ended = time.process_time()

    def step(self, batch):
        """Seconds of one bare step; the loss is written out, arXiv 2305.18290 eq. 7."""
        tokens, reference = batch.tokens, batch.notes.token["ref_logps"]
        chosen, rejected = batch.view.pairs.T
        owner = tokens.owner()
        start = time.process_time()
        self.optimizer.zero_grad(set_to_none=True)
        gap = self.policy(tokens).logps - reference
        sums = gap.new_zeros(tokens.num_responses).index_add(0, owner, gap)
        margin = sums[chosen] - sums[rejected]
        (-torch.nn.functional.logsigmoid(self.beta * margin)).mean().backward()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.weights, self.clip)
        self.optimizer.step()
        return time.process_time() - start


def main():
    with composing():
        cfg = compose_config([*RUN, *sys.argv[1:]])
    OmegaConf.set_struct(cfg, False)
    bare = Bare()
    with tempfile.TemporaryDirectory() as folder:
        cfg.paths.run_dir = folder
        parts = build(cfg)
        trainer = trainer_of(cfg, parts, folder)
        trainer.callbacks.append(bare)
        trainer.fit(parts.objective, datamodule=parts.data)
    ours, alone = bare.ours[WARM:], bare.bare[WARM:]
    extra = sorted(1000 * (a - b) for a, b in zip(ours, alone, strict=True))
    middle, low, high = (extra[int(len(extra) * q)] for q in (0.5, 0.25, 0.75))
    print(
        f"{len(ours)} steps: {1000 * statistics.median(ours):.2f} ms, bare "
        f"{1000 * statistics.median(alone):.2f} ms; the loop adds {middle:.2f} ms "
        f"(quartiles {low:.2f} to {high:.2f}), {statistics.mean(extra):.2f} on average"
    )


if __name__ == "__main__":
    main()
