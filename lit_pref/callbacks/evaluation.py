"""Validation by sampling: true reward, KL to the reference, lengths, on fixed random numbers."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
import torch

from lit_pref.data.gather import gather_strided
from lit_pref.data.generate import generate_groups
from lit_pref.types import FlatTokens, Group

__all__ = ["Evaluation", "evaluate"]

log = logging.getLogger(__name__)


def evaluate(trainer: L.Trainer, module: Any, *, responses: int = 1) -> tuple[dict, list[Group]]:
    """Sample validation prompts and measure.

    The same uniform numbers are used every time and in every run, whatever its seed, and plain
    sampling (temperature 1, all tokens), so that curves are comparable and KL is unbiased.

    Args:
        trainer: with one of lit_pref's DataModules.
        module: the objective.
        responses: responses per validation prompt.

    Returns:
        Metrics by name (``val/reward``, ``val/kl`` in nats per sequence, ``val/entropy`` in nats
        per token, ``val/mean_length`` in tokens, ``val/finished``), and the groups.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    reward = data.task.true_reward() or data.reward
    groups = generate_groups(
        module.policy,
        data.validation_prompts,
        task=data.task,
        sampler=data.sampler.plain(),
        reward=reward,
        key=("validation",),
        responses=responses,
        rank=trainer.global_rank,
        world=trainer.world_size,
        context=trainer.precision_plugin.forward_context,
    )
    flat = [r for g in groups for r in g.responses]
    metrics = {
        "val/mean_length": sum(len(r.ids) for r in flat) / len(flat),
        "val/finished": sum(r.finished for r in flat) / len(flat),
    }
    if reward is not None:
        data.counters["eval_queries"] += len(flat)
        metrics["val/reward"] = sum(r.reward for r in flat) / len(flat)
    metrics.update(_log_prob_metrics(trainer, module, groups))
    return metrics, groups


def _log_prob_metrics(trainer: L.Trainer, module: Any, groups: list[Group]) -> dict[str, float]:
    """KL and entropy from log-probs of the samples; each process scores its stride."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    rank, world = trainer.global_rank, trainer.world_size
    forward = module.forward_pass(data.micro_batch_tokens)
    mine = groups[rank::world]
    tokens = FlatTokens.from_groups(mine)
    owner = tokens.owner()
    names = ["policy"] + ([] if module.reference is None else ["reference"])
    sums = {}
    for name in names:
        logps = forward(name, tokens).logps.double()
        sums[name] = torch.zeros(tokens.num_responses, dtype=torch.float64).index_add(
            0, owner, logps
        )
    per_group, start = [], 0
    for group in mine:
        part = slice(start, start + len(group.responses))
        per_group.append({name: sums[name][part].tolist() for name in names})
        start += len(group.responses)
    everything = gather_strided(per_group, world)
    policy = torch.tensor([x for g in everything for x in g["policy"]])
    length = sum(len(r.ids) for g in groups for r in g.responses)
    out = {"val/entropy": float(-policy.sum() / max(length, 1))}
    if module.reference is not None:
        reference = torch.tensor([x for g in everything for x in g["reference"]])
        out["val/kl"] = float((policy - reference).mean())
    return out


class Evaluation(L.Callback):
    """Evaluates before the first step, every ``every_n_rounds`` rounds, and at the end.

    Args:
        every_n_rounds: 0 evaluates at start and end only.
        responses: responses per validation prompt.
    """

    def __init__(self, *, every_n_rounds: int = 1, responses: int = 1) -> None:
        self.every_n_rounds = every_n_rounds
        self.responses = responses
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.last_step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0 and self.last_step < 0:
            self._run(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        passes = trainer.current_epoch + 1
        rounds, rest = divmod(passes, data.reuse)
        over = trainer.global_step >= data.total_steps
        due = rest == 0 and self.every_n_rounds > 0 and rounds % self.every_n_rounds == 0
        if due or over:
            self._run(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.last_step != trainer.global_step and trainer.global_step > 0:
            self._run(trainer, pl_module)

    def _run(self, trainer: L.Trainer, module: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        metrics, groups = evaluate(trainer, module, responses=self.responses)
        self.first = self.first or metrics
        self.last, self.last_step = metrics, trainer.global_step
        for name, value in metrics.items():
            trainer.callback_metrics[name] = torch.tensor(value)
        for logger in trainer.loggers:
            logger.log_metrics({**data.progress(), **metrics}, step=trainer.global_step)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            told = getattr(callback, "on_evaluation", None)
            if told is not None:
                told(trainer, metrics, groups)

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "last": self.last, "last_step": self.last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first, self.last = dict(state_dict["first"]), dict(state_dict["last"])
        self.last_step = state_dict["last_step"]
