"""The base of all objectives: one optimizer step from one batch, whatever the loss.

A family (``objectives/families``) says what its loss method looks like; a final class overrides
exactly that method. Micro-batches live inside ``training_step`` and never change the gradient,
because losses are normalised by the counts of the whole batch over all processes.

Shapes: ``B`` responses, ``T`` response tokens.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, TypedDict, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from lit_pref.functional.segments import segment_sum
from lit_pref.metrics.window import Window
from lit_pref.objectives.behaviour import finish_importance, track_behaviour, track_sampling
from lit_pref.objectives.evaluate import log_measures, predict_groups
from lit_pref.objectives.forward import EngineForward
from lit_pref.objectives.gradient_parts import gradient_parts
from lit_pref.objectives.guard import StepGuard
from lit_pref.objectives.optim import OptimizerSettings, SchedulerSettings, clip_gradients
from lit_pref.objectives.run_data import data_of
from lit_pref.objectives.step import backward, backward_coupled
from lit_pref.policies.sharding import is_sharded, shard
from lit_pref.types import (
    Batch,
    FlatTokens,
    Forward,
    Group,
    Needs,
    Policy,
    Reference,
    Refusal,
    Round,
    TokenStats,
    TrainedPolicy,
    View,
)

__all__ = ["ObjectiveModule", "SharedArgs"]

log = logging.getLogger(__name__)


class SharedArgs(TypedDict, total=False):
    """Keyword arguments that every objective takes; documented at ``ObjectiveModule``."""

    reference: Reference | None
    optimizer: OptimizerSettings | None
    scheduler: SchedulerSettings | None
    negative_weight: float


class ObjectiveModule(L.LightningModule):
    """What all objectives share.

    Args:
        policy: the model to train.
        reference: the model it is held near; also what KL is measured to. None for neither.
        optimizer: optimizer settings.
        scheduler: learning-rate schedule.
        negative_weight: a in [0, 1] multiplies every positive entry of dLoss/dtoken_logp, the
            part of the update that pushes log-probs down. 1 is the objective as published; 0
            removes its negative gradient. The loss value does not change.
    """

    family: ClassVar[str]
    needs: Needs = Needs()
    negative_gradient: bool
    """Whether the update lowers the log-prob of some response tokens."""
    couples_batch: ClassVar[bool] = False
    """Whether the loss of one response depends on others of the batch beyond its own pair."""
    whole_prompts: bool = True
    """Whether the responses of one prompt must go through the model together."""
    shards: bool = True
    """Whether everything it trains and keeps can be sharded (strategy=fsdp2)."""
    reuse: bool = True
    """Whether the loss is right for samples used several times (``data.reuse`` above 1)."""
    paper: ClassVar[str] = ""
    """arXiv id."""

    def __init__(
        self,
        policy: Policy,
        *,
        reference: Reference | None = None,
        optimizer: OptimizerSettings | None = None,
        scheduler: SchedulerSettings | None = None,
        negative_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        if not 0 <= negative_weight <= 1:
            raise Refusal(
                f"objective.negative_weight must be in [0, 1], got {negative_weight}; 1 is the "
                "objective as published, 0 removes its negative gradient"
            )
        if self.needs.reference and reference is None:
            raise Refusal(
                f"{type(self).__name__} needs a reference model; use reference=frozen "
                "(in Python: reference=FrozenReference())"
            )
        self.policy = cast(TrainedPolicy, policy)  # one that only samples cannot be trained
        self.reference = reference
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.scheduler_settings = scheduler or SchedulerSettings()
        self.negative_weight = float(negative_weight)
        self.window = Window()
        self.guard = StepGuard(self.optimizer_settings.max_skipped)
        self._lr = 0.0
        self.latest: dict[str, float] = {}

    # ------------------------------------------------------------------ what a family provides

    def token_stats(self) -> Iterable[str]:
        """Statistics of the training forward beyond log-probs (``engine.forward.STATS``)."""
        return ()

    @abstractmethod
    def batch_loss(self, stats: TokenStats, batch: Batch) -> Tensor:
        """Loss of one micro-batch, already divided by the counts of the whole batch.

        The sum over micro-batches and processes is the loss of the batch.
        """

    def couple(self, batch: Batch) -> Batch:
        """Coupled losses only: the batch over all processes, once per step, without gradient.

        A subclass may add notes to it; work is shared by what is local to each process.

        Args:
            batch: this process's part, ``batch.whole`` the rest of it (None: this is all).
        """
        return batch.whole or batch

    @abstractmethod
    def select(self, round: Round, *, seed: int) -> list[list[bool]]: ...

    @abstractmethod
    def view(self, round: Round, *, seed: int) -> View: ...

    def annotations(self, round: Round) -> dict[str, str]:
        """Notes wanted once per round: name -> ``"policy"`` or ``"reference"``."""
        return {"ref_logps": "reference"} if self.needs.reference else {}

    def annotate(self, round: Round, forward: Forward) -> View:
        tokens = round.tokens()
        notes = View()
        for name, which in self.annotations(round).items():
            if which == "reference":
                notes.token[name] = self.reference_logps(round, tokens, forward)
            else:
                notes.token[name] = forward(which, tokens).logps
        return notes

    def reference_logps(self, round: Round, tokens: FlatTokens, forward: Forward) -> Tensor:
        """[T] log-probs under the reference; those of stored responses may come from a file."""
        stored = [round.groups[g].source != "onpolicy" for g in round.group_index()]
        cache_of = getattr(self.reference, "cache", None)
        cache = cache_of(precision=self.trainer.precision) if cache_of and any(stored) else None
        if cache is None:
            return forward("reference", tokens).logps
        return cache.logps(tokens, stored, lambda part: forward("reference", part).logps)

    def response_sums(self, token_values: Tensor, tokens: FlatTokens) -> Tensor:
        """[B] sums over each response."""
        return segment_sum(token_values, tokens.owner(), tokens.num_responses)

    def begin_round(self, index: int) -> None:
        if self.reference is not None:
            self.reference.advance(self.policy, index)

    def observe(self, round: Round) -> None:
        """Nothing to absorb by default."""

    def objective_state(self) -> dict[str, Tensor]:
        return {}

    def load_objective_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of ``objective_state``."""

    def export(self, folder: str) -> None:
        """Write what was trained as a Hugging Face folder, at the end of a run."""
        self.policy.save_pretrained(folder)

    # ------------------------------------------------------------------ one step

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        self._lr = optimizer.param_groups[0]["lr"]
        optimizer.zero_grad(set_to_none=True)
        if not all(module.training for module in self.policy.modules()):  # setting it costs more
            self.policy.train()
        if batch.counts["responses"] > 0:
            (backward_coupled if self.couples_batch else backward)(self, batch)
        self._update(optimizer, batch)
        scheduler = self.lr_schedulers()
        if scheduler is not None:
            assert not isinstance(scheduler, list)
            scheduler.step()
        self.log_step(batch)

    def _update(self, optimizer: Any, batch: Batch) -> None:
        settings = self.optimizer_settings
        weights = (p for group in optimizer.param_groups for p in group["params"])
        norm = clip_gradients(weights, settings.clip_norm)
        if batch.counts["responses"] == 0:
            optimizer.zero_grad(set_to_none=True)  # the optimizer does nothing; the step counts
        self.guard.step(optimizer, norm, self.window, at=self.trainer.global_step)

    def compare_with_sampler(self, token_logps: Tensor, batch: Batch) -> None:
        """The policy now against the sampler, and against what produced the responses."""
        if self.needs.policy:
            track_sampling(self.window, token_logps, batch)
            track_behaviour(self.window, token_logps, batch)

    def gradient_parts(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Norms and cosine of what raises log-probs and what lowers them, for the callback."""
        return gradient_parts(self, batch)

    # ------------------------------------------------------------------ logging

    def log_step(self, batch: Batch) -> None:
        """End of a step; in ``training_step``, since callbacks that save run right after it."""
        for name, value in batch.info.items():
            self.window.add_number(name, value)
        self.window.add_number("learning_rate", self._lr)
        step = self.trainer.global_step
        total = data_of(self.trainer).total_steps
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # not declared
        if step % every == 0 or step == total:
            self.log_window()

    def log_window(self) -> None:
        """Send the window's means to the loggers: one transfer from the device for all of them."""
        names = self.window.names()
        if self.trainer.world_size > 1:
            names = sorted(set().union(*_from_all(names)))
        values = self.window.flush(self.sum_over_processes, names)
        finish_importance(values)
        self.guard.read()
        values["skipped_steps"] = float(self.guard.skipped)
        progress = data_of(self.trainer).progress()
        for logger in self.trainer.loggers:
            logger.log_metrics({**progress, **values}, step=self.trainer.global_step)
        # what EarlyStopping, ModelCheckpoint and progress bars of Lightning read
        self.trainer.callback_metrics.update({k: torch.tensor(v) for k, v in values.items()})
        self.latest = values

    def sum_over_processes(self, values: Tensor) -> Tensor:
        """Elementwise sum of a tensor over all processes."""
        if self.trainer.world_size == 1:
            return values
        return self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum")

    # ------------------------------------------------------------------ Lightning

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        log_measures(self, batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        log_measures(self, batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> list[Group]:
        """Groups of responses to a batch of prompts."""
        return predict_groups(self, batch)

    def configure_model(self) -> None:
        mesh = self.device_mesh
        if mesh is not None and getattr(self.policy, "lora", None) is not None:
            raise Refusal(
                "adapters cannot be sharded (strategy=fsdp2 with model.lora); use strategy=ddp: "
                "only the adapters have gradients and optimizer state"
            )
        if mesh is not None and not self.shards:
            raise Refusal(
                f"{type(self).__name__} cannot be sharded (strategy=fsdp2): what it has "
                "beside the policy is not; use strategy=ddp"
            )
        # Lightning makes its GPU the default device here, which draws of our generators do not
        # work on, and moves the module there afterwards.
        with torch.device("cpu"):
            self.policy.load()
            if self.reference is not None:
                self.reference.prepare(self.policy)
        if mesh is not None and not is_sharded(self.policy):
            for model in (self.policy, getattr(self.reference, "copy", None)):
                if isinstance(model, nn.Module):
                    shard(model, mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.optimizer_settings.build(self.parameter_groups())
        total = data_of(self.trainer).total_steps
        scheduler = self.scheduler_settings.build(optimizer, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters; one group unless a subclass adds a head."""
        return [{"params": [p for p in self.policy.parameters() if p.requires_grad]}]

    def on_fit_start(self) -> None:
        if self.reference is not None:
            self.reference.to(self.device)

    def forward_pass(self, micro_batch_tokens: int | None) -> Forward:
        """How notes are computed; see ``objectives.forward.EngineForward``."""
        precision = self.trainer.precision_plugin
        context = precision.forward_context
        return EngineForward(self.models(), micro_batch_tokens, self.device, context)

    def models(self) -> dict[str, Any]:
        """What notes may come from, by name: anything with ``token_logps``."""
        models: dict[str, Any] = {"policy": self.policy}
        if self.reference is not None:
            models["reference"] = self.reference
        return models

    # ------------------------------------------------------------------ checkpoints

    def identity(self) -> dict[str, str]:
        """What a checkpoint must agree on to be loaded into this module."""
        spec, lora = (getattr(self.policy, name, None) for name in ("spec", "lora"))
        model = "" if spec is None else f"{spec.name} ({spec.fingerprint[:12]})"
        if lora is None:
            return {"objective": type(self).__name__, "model": model}
        return {
            "objective": type(self).__name__,
            "model": f"{model} with {lora}",
            "base model": self.policy.base_digest(),  # type: ignore[attr-defined]
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lit_pref"] = {
            "identity": self.identity(),
            "objective_state": self.objective_state(),
            "windows": _from_all({n: v.cpu() for n, v in self.window.state().items()}),
            "skipped": self.guard.state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("lit_pref")
        if saved is None:
            raise Refusal(
                "this checkpoint was not written by lit_pref; give one from a run's folder"
            )
        for what, mine in self.identity().items():
            if saved["identity"][what] != mine:
                raise Refusal(
                    f"the checkpoint is of another {what}: it holds {saved['identity'][what]!r}, "
                    f"this run has {mine!r}; resume with the configuration of the run that wrote it"
                )
        self.load_objective_state(saved["objective_state"])
        windows = saved["windows"]
        self.window.load(windows[self.global_rank] if self.global_rank < len(windows) else {})
        self.guard.load(saved["skipped"])


def _from_all(item: Any) -> list[Any]:
    """What each process has, by rank; in one process, what it has."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [item]
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, item)
    return everyone
