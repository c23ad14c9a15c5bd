"""One evaluation, as the instruments see it: what was sampled, and how to sample and score more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from lit_pref.data.evaluation import Measured, sequence_logps
from lit_pref.data.generate import generate_groups
from lit_pref.rewards.base import measuring
from lit_pref.sampling import NativeSampler
from lit_pref.types import Group, Prompt, RewardSource

__all__ = ["Instrument", "Occasion", "ReferenceSamples"]


@runtime_checkable
class Instrument(Protocol):
    """A callback that measures at every evaluation; ``Evaluation`` asks all of the trainer's."""

    def measure(self, occasion: Occasion) -> dict[str, float]:
        """Numbers by glossary name; called in every process, with the same data in each."""
        ...


@dataclass
class ReferenceSamples:
    """Samples of the reference on the validation prompts, made once while it stands still.

    Attributes:
        groups: one per validation prompt, scored where there is a reward.
        logps: log-prob of every response under the reference, in order.
    """

    groups: list[Group]
    logps: list[float]

    def state(self) -> dict[str, Any]:
        """Primitives, for checkpoints."""
        return {"groups": [g.state() for g in self.groups], "logps": list(self.logps)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ReferenceSamples:
        """Inverse of ``state``."""
        return cls([Group.from_state(g) for g in state["groups"]], list(state["logps"]))


class Occasion:
    """The policy at one evaluation.

    Args:
        trainer: with one of lit_pref's DataModules.
        module: the objective.
        measured: the policy's samples on the validation prompts with their log-probs; None for a
            reward model, which does not sample.
        kept: samples of a reference that stands still, from an earlier evaluation.
        metrics: what was measured so far at this evaluation, by name.
    """

    def __init__(
        self,
        trainer: Any,
        module: Any,
        measured: Measured | None,
        *,
        kept: ReferenceSamples | None = None,
        metrics: dict[str, float] | None = None,
    ) -> None:
        self.trainer, self.module, self.measured = trainer, module, measured
        self.data: Any = trainer.datamodule
        self.kept = kept
        self.metrics = {} if metrics is None else metrics

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return int(self.trainer.global_step)

    @property
    def reward(self) -> RewardSource | None:
        """What evaluations are scored by: the true reward where the task knows it."""
        return self.data.task.true_reward() or measuring(self.data.reward)

    @property
    def has_reference(self) -> bool:
        """Whether there is a reference to compare with."""
        return self.module.reference is not None

    @property
    def reference_samples_too(self) -> bool:
        """Whether there is a reference that can be sampled from; a closed form may only score."""
        return self.has_reference and callable(getattr(self.model("reference"), "prefill", None))

    def model(self, which: str) -> Any:
        """The network that samples, by name (``"policy"``, ``"reference"``)."""
        if which == "policy":
            return self.module.policy
        self.module.reference.to(self.module.device)
        return getattr(self.module.reference, "copy", None) or self.module.reference

    def logps(self, groups: Sequence[Group], *models: str) -> dict[str, list[float]]:
        """Log-prob of every response by model; each process scores its stride."""
        if "reference" in models:
            self.module.reference.to(self.module.device)
        return sequence_logps(
            self.module.forward_pass(self.data.micro_batch_tokens),
            models,
            list(groups),
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )

    def sample(
        self,
        which: str,
        prompts: Sequence[Prompt],
        *,
        key: tuple[int | str, ...],
        responses: int = 1,
        greedy: bool = False,
        scored: bool = False,
    ) -> list[Group]:
        """Plain or greedy samples of a model; scores count as evaluation queries.

        Args:
            which: ``"policy"`` or ``"reference"``.
            prompts: over all processes.
            key: coordinates of the draws; the run's seed is not among them, so that every run
                uses the same numbers.
            responses: responses per prompt.
            greedy: the likeliest token at each place instead of a draw.
            scored: score them by ``reward``.
        """
        sampler = self.data.sampler.plain()
        if greedy:
            sampler = NativeSampler(
                max_new_tokens=sampler.max_new_tokens,
                stop_ids=getattr(sampler, "stop_ids", ()),
                max_rows=getattr(sampler, "max_rows", None),
                refill=getattr(sampler, "refill", True),
                temperature=0.0,
            )
        reward = self.reward if scored else None
        groups = generate_groups(
            self.model(which),
            prompts,
            task=self.data.task,
            sampler=sampler,
            reward=reward,
            key=key,
            responses=responses,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            context=self.trainer.precision_plugin.forward_context,
        )
        for group in groups:
            for response in group.responses:
                response.behaviour = which
        if reward is not None:
            self.data.counters["eval_queries"] += sum(len(g.responses) for g in groups)
        return groups

    def reference_samples(self, responses: int) -> ReferenceSamples:
        """The reference's samples; made anew where it moves or has none yet.

        Args:
            responses: responses per validation prompt.
        """
        kept = self.kept
        if kept is not None and all(len(g.responses) == responses for g in kept.groups):
            return kept
        groups = self.sample(
            "reference",
            self.data.validation_prompts,
            # Draws of its own: with the policy's, a policy near the reference would only tie.
            key=("validation", "reference"),
            responses=responses,
            scored=True,
        )
        self.kept = ReferenceSamples(groups, self.logps(groups, "reference")["reference"])
        return self.kept
