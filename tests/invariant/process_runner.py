"""Training jobs in one or two gloo processes that record their gradients."""

import gc
import os
import socket
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
COMMON = ["task=text", "model=tiny", "reward=callable",
          "reward.function=tests_integration_support.tied_reward", "callbacks=minimal",
          "sampler.max_new_tokens=10", f"sampler.stop_ids={list(range(0, 250, 9))}",
          "task.validation_prompts=2", "data.responses_per_prompt=4", "data.batch_size=2",
          "data.micro_batch_tokens=150", "optimizer=sgd", "optimizer.lr=0.05",
          "optimizer.clip_norm=null", "export=false", "trainer.precision=64-true"]  # fmt: skip
ROUNDS = ["data.prompts_per_round=4", "data.reuse=2", "data.rounds=2"]
ONPOLICY = ["data=onpolicy", *ROUNDS]
OFFLINE = ["data=offline", f"task.pairs={ROOT}/docs/examples/pairs.jsonl", *ROUNDS]
BANDIT = ["task=token_bandit", "model=gpt_nano", "callbacks=minimal", "optimizer=sgd",
          "optimizer.lr=0.05", "optimizer.clip_norm=null", "export=false",
          "trainer.precision=64-true", "trainer.max_steps=1", "data.batch_size=5",
          "data.responses_per_prompt=4", "data.micro_batch_tokens=60",
          "+task.validation_prompts=4"]  # fmt: skip


def composed(cases):
    """Configurations by name, to be given to all processes: composing takes longer than a step."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from lit_pref.app.preflight import config_dir

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return {n: OmegaConf.to_container(compose("train", overrides=o)) for n, o in cases.items()}


def record(config, folder, devices):
    """Gradients [steps] of one job, and in which steps this process had nothing to do."""
    import lightning as L
    from omegaconf import OmegaConf

    from lit_pref.app.build import build, trainer_of

    gradients, empty = [], []

    class Grab(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            parts = [p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]
            gradients.append(torch.cat(parts) if parts else torch.zeros(1))

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            empty.append(batch.tokens.num_responses == 0)

    cfg = OmegaConf.create(config)
    cfg.paths.run_dir = str(folder)
    if devices == 2:
        cfg.trainer.update(strategy="ddp", accelerator="cpu", devices=2)
    L.seed_everything(cfg.seed, workers=False, verbose=False)
    parts = build(cfg)
    trainer = trainer_of(cfg, parts, str(folder), callbacks=[Grab()], enable_checkpointing=False)
    trainer.fit(parts.objective, datamodule=parts.data)
    return {"gradients": gradients, "empty": empty}


def run_all(cases, folder, rank, world, port):
    """All cases, one after the other, as one of ``world`` processes."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT / "tests" / "integration"))
    if world > 1:
        os.environ.update(
            TORCHELASTIC_RUN_ID="test", RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0",
            WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )  # fmt: skip
    gc.freeze()
    out = {n: record(c, folder / f"{world}_{n}", world) for n, c in cases.items()}
    torch.save(out, folder / f"{world}_{rank}.pt")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
