"""Short runs on the token bandit, in this process, and what they leave."""

import json

import lightning as L
import torch

from lit_pref.callbacks import MetricsCSV, RunFiles
from lit_pref.data import MixedDataModule, OfflineDataModule, OnPolicyDataModule, ReplayDataModule
from lit_pref.objectives import DPO
from lit_pref.policies import FrozenReference, HFPolicy, gpt_nano
from lit_pref.sampling import NativeSampler
from lit_pref.tasks import TokenBandit

SIZES = {"prompts_per_round": 4, "batch_size": 2, "reuse": 2, "rounds": 2}
KINDS = {"onpolicy": OnPolicyDataModule, "offline": OfflineDataModule, "mixed": MixedDataModule}


class Watch(L.Callback):
    """Remembers rounds, batches and the facts of each step; may stop after some steps."""

    def __init__(self, stop=None):
        self.rounds, self.batches, self.infos, self.stop = [], [], [], stop

    def setup(self, trainer, pl_module, stage):
        trainer.datamodule.listeners.append(self)

    def on_pass_start(self, index, number):
        pass

    def on_progress(self, stage, done, total):
        pass

    def on_failed_round(self, index, groups):
        pass

    def on_round(self, round):
        self.rounds.append(round)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append(batch)
        self.infos.append(dict(batch.info) | dict(pl_module.latest))
        if self.stop == trainer.global_step:
            trainer.save_checkpoint(trainer.default_root_dir + "/stopped.ckpt")
            trainer.should_stop = True


def source(kind, *, task=None, reward=None, responses=3, **options):
    """A DataModule; ``task`` and ``reward`` default to the bandit's."""
    task = task or TokenBandit(seed=0, offline_prompts=6, train_prompts=5)
    if "path" in options:
        arguments = {**SIZES, **options}
        return ReplayDataModule(
            task, sampler=NativeSampler(max_new_tokens=9), reward=None, **arguments
        )
    return KINDS[kind](
        task, sampler=NativeSampler(max_new_tokens=9), reward=reward or task.true_reward(),
        responses_per_prompt=responses, **{**SIZES, **options},
    )  # fmt: skip


def dpo(**options):
    return DPO(HFPolicy(gpt_nano()), reference=FrozenReference(), **{"pairs": "all", **options})


def train(data, folder, module=None, *, stop=None, ckpt_path=None):
    """(weights, watch, module) of a run; its files are in ``folder``."""
    torch.manual_seed(0)
    module = module or dpo()
    watch = Watch(stop)
    wanted = data.trainer_kwargs()
    wanted["callbacks"] += [watch, RunFiles(folder)]
    trainer = L.Trainer(
        **wanted, logger=[MetricsCSV(folder)], log_every_n_steps=1, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=str(folder),
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return [p.detach().clone() for p in module.policy.parameters()], watch, module


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def lines(folder):
    return [json.loads(x) for x in (folder / "samples.jsonl").read_text().splitlines()]
