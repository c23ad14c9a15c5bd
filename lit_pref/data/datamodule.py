"""Axes 1 and 2: rounds of groups, each used ``reuse`` times.

A Lightning epoch is one *pass* over a round. ``train_dataloader`` makes the round that the epoch
needs (once: it is idempotent) and returns the same loader object every time.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import lightning as L
import torch

from lit_pref.data.checks import check_combination, check_sizes
from lit_pref.data.collate import RoundTensors
from lit_pref.data.evaluation import Measured, PromptLoader, measure_module
from lit_pref.data.generate import generate_groups
from lit_pref.data.loader import RoundLoader
from lit_pref.data.order import PassOrder
from lit_pref.data.reward_log import RewardLog
from lit_pref.data.rounds import RoundListener, make_round, round_from_state, round_state
from lit_pref.data.stored import StoredGroups
from lit_pref.functional.rng import Order
from lit_pref.rewards.scoring import check_prompts
from lit_pref.tasks.base import Task
from lit_pref.types import (
    Group,
    PreferenceOracle,
    Prompt,
    Refusal,
    RewardSource,
    Round,
    RoundClient,
    Sampler,
)

__all__ = ["RoundDataModule", "RoundListener"]

log = logging.getLogger(__name__)


class RoundDataModule(L.LightningDataModule):
    """Base of all data sources: a subclass overrides ``make_groups``.

    Args:
        task: prompts, validation prompts, true reward, stored preference data.
        sampler: makes responses (training and validation); None where neither is wanted.
        reward: what training responses are scored with; None only if the source is scored.
        prompts_per_round: groups in a round.
        responses_per_prompt: responses per prompt.
        batch_size: groups per optimizer step; divides ``prompts_per_round``.
        reuse: passes over each round.
        rounds: rounds in the run.
        max_steps: stop after so many optimizer steps at the latest (-1: no limit).
        micro_batch_tokens: prompt and response tokens that go through the model at once; changes
            memory and speed, never the gradient. None: the whole batch.
        seed: of every random draw on the data side.
        prompt_order: ``shuffled``: prompts (or rows) come without replacement across rounds, each
            sweep over them and each pass in an order of its own; ``fixed``: in the order of the
            task (or file), in every pass.
        max_age: a group older than so many steps keeps its place in its batch with weight 0, and
            is counted; None: no limit. Stored groups are as old as the run.

    Raises:
        Refusal: sizes that do not fit together.
    """

    source: ClassVar[str]
    fresh_groups: int
    """Groups of each round that are sampled from the policy as it is then; they come first.

    The rest are rows of ``stored``. Each of the two parts is permuted separately, and every batch
    has its share of both.
    """
    stored: StoredGroups | None
    """Where the other groups of a round come from."""

    def __init__(
        self,
        task: Task,
        *,
        sampler: Sampler | None,
        reward: RewardSource | PreferenceOracle | None,
        prompts_per_round: int,
        responses_per_prompt: int,
        batch_size: int,
        reuse: int = 1,
        rounds: int = 1,
        max_steps: int = -1,
        micro_batch_tokens: int | None = None,
        seed: int = 0,
        prompt_order: Order = "shuffled",
        max_age: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "prompts_per_round": prompts_per_round,
            "responses_per_prompt": responses_per_prompt,
            "batch_size": batch_size,
            "reuse": reuse,
            "rounds": rounds,
        }
        check_sizes(
            sizes, micro_batch_tokens=micro_batch_tokens, max_age=max_age, order=prompt_order
        )
        self.task = task
        self.sampler = sampler
        self.reward = reward
        self.prompts_per_round = prompts_per_round
        self.responses_per_prompt = responses_per_prompt
        self.batch_size = batch_size
        self.reuse = reuse
        self.rounds = rounds
        self.max_steps = max_steps
        self.micro_batch_tokens = micro_batch_tokens
        self.seed = seed
        self.prompt_order: Order = prompt_order
        self.max_age = max_age
        self.fresh_groups = prompts_per_round
        self.stored = None
        self.newly_sampled: list[Group] = []
        self.round_counts: dict[str, float] = {}
        self.validation_prompts = task.validation()
        self.held_out_groups: Sequence[Group] = []
        self.predict_prompts: Sequence[Prompt] | None = None
        self.listeners: list[RoundListener] = []
        self.counters = {"samples": 0, "reward_queries": 0, "eval_queries": 0}
        self.reward_log = RewardLog(reward, task)
        self.loader = RoundLoader(self)
        self.armed = False
        self.round: Round | None = None
        self._tensors: RoundTensors | None = None
        self._pass = 0
        self._order = PassOrder(seed, order=prompt_order)
        self._largest_said = 0
        self._failure_told = False

    # ------------------------------------------------------------------ override

    @abstractmethod
    def make_groups(self, index: int, client: RoundClient) -> list[Group]:
        """The ``prompts_per_round`` groups of round ``index``, scored."""

    def sample(
        self,
        prompts: Sequence[Prompt],
        key: tuple[int | str, ...],
        *,
        index: int,
        version: int,
        source: str,
    ) -> list[Group]:
        """Sample and score groups from the policy as it is; counted, over all processes.

        Args:
            prompts: one per group.
            key: coordinates of the draws, after the seed.
            index: the round they are for.
            version: optimizer steps the policy has taken.
            source: recorded as where the groups come from.
        """

        def mark(groups: list[Group]) -> list[Group]:
            for group in groups:
                group.round, group.policy_version, group.source = index, version, source
            return groups

        # What was sampled for this round before is the same in every process: one keeps it.
        rank = self.trainer.global_rank  # type: ignore[union-attr]
        before = [] if rank else list(self.newly_sampled)
        groups = self._generate(
            self.client,
            prompts,
            key,
            progress=self.tell,
            on_failure=lambda found: self._on_failure(index, [*before, *mark(found)]),
        )
        mark(groups)
        responses = sum(len(g.responses) for g in groups)
        self.counters["samples"] += responses
        self.counters["reward_queries"] += 0 if self.reward is None else responses
        self.newly_sampled += groups
        return groups

    def _generate(
        self, module: Any, prompts: Sequence[Prompt], key: tuple[int | str, ...], **told: Any
    ) -> list[Group]:
        """Sampled and scored groups over all processes; ``told`` are ``generate_groups``'s."""
        trainer = self.trainer
        assert trainer is not None
        return generate_groups(
            module.policy,
            prompts,
            task=self.task,
            sampler=self._sampler(),
            reward=self.reward,
            key=(self.seed, *key),
            responses=self.responses_per_prompt,
            rank=trainer.global_rank,
            world=trainer.world_size,
            context=trainer.precision_plugin.forward_context,
            **told,
        )

    def _sampler(self) -> Sampler:
        if self.sampler is None:
            raise Refusal(
                f"{type(self).__name__} was made without a sampler, which validation needs; give "
                "sampler=NativeSampler(max_new_tokens=...)"
            )
        return self.sampler

    def tell(self, stage: str, done: int, total: int) -> None:
        """How far a round is that is being made, to all listeners."""
        for listener in self.listeners:
            listener.on_progress(stage, done, total)

    def _on_failure(self, index: int, groups: list[Group]) -> None:
        """Tell once per failed round: who knows most of what was sampled comes first."""
        if self._failure_told:
            return
        self._failure_told = True
        for listener in self.listeners:
            listener.on_failed_round(index, groups)

    # ------------------------------------------------------------------ checks

    def check(self, client: RoundClient) -> None:
        """Whether an objective can be trained on this source; before any weight is loaded.

        Raises:
            Refusal: it cannot; the message says what to change.
        """
        check_combination(self, client)
        if self.fresh_groups:
            check_prompts(self.reward, self.task.prompts())
        if self.task.true_reward() is None:  # else that one measures
            check_prompts(self.reward, self.validation_prompts)

    # ------------------------------------------------------------------ sizes

    def version(self, index: int) -> int:
        """Optimizer steps taken when round ``index`` begins."""
        return index * self.reuse * self.batches_per_pass

    @property
    def batches_per_pass(self) -> int:
        return self.prompts_per_round // self.batch_size

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        steps = self.rounds * self.reuse * self.batches_per_pass
        return steps if self.max_steps < 0 else min(steps, self.max_steps)

    @property
    def tag(self) -> list[int]:
        """(round, pass) being trained on."""
        return [-1 if self.round is None else self.round.index, self._pass]

    def progress(self) -> dict[str, float]:
        """The first columns of ``metrics.csv``."""
        index, number = self.tag
        return {
            "samples": self.counters["samples"],
            "reward_queries": self.counters["reward_queries"],
            "round": max(index, 0),
            "pass": number,
        }

    def trainer_kwargs(self) -> dict[str, Any]:
        """What ``lightning.Trainer`` must be given for rounds to work."""
        from lit_pref.data.callback import RoundCallback

        return {
            "reload_dataloaders_every_n_epochs": 1,
            "max_epochs": self.rounds * self.reuse,
            "max_steps": self.max_steps,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "inference_mode": False,
            "callbacks": [RoundCallback()],
        }

    # ------------------------------------------------------------------ measuring

    def val_dataloader(self) -> PromptLoader:
        """Validation prompts, for ``trainer.validate``; fit measures by a callback instead."""
        return PromptLoader(self.validation_prompts, "validation")

    def test_dataloader(self) -> PromptLoader:
        """The task's test prompts, for ``trainer.test``."""
        return PromptLoader(self.task.test(), "test")

    def predict_dataloader(self) -> PromptLoader:
        """Prompts that ``trainer.predict`` responds to: the validation prompts, or set your own."""
        prompts = self.validation_prompts if self.predict_prompts is None else self.predict_prompts
        return PromptLoader(prompts, "predict")

    def measure(
        self,
        module: Any,
        prompts: Sequence[Prompt],
        *,
        key: tuple[int | str, ...] = ("validation",),
        responses: int = 1,
    ) -> Measured:
        """Plain samples (temperature 1, all tokens) of the policy, scored by the true reward.

        The same uniform numbers are used every time and in every run, whatever its seed, so that
        curves are comparable and KL is unbiased.
        """
        self._sampler()
        return measure_module(self, module, prompts, key=key, responses=responses)

    def respond(self, module: Any, prompts: Sequence[Prompt], *, stage: str) -> list[Group]:
        """Responses as in training: this sampler, reward, seed and number of responses."""
        return self._generate(module, prompts, (stage,))

    # ------------------------------------------------------------------ rounds

    def train_dataloader(self) -> RoundLoader:
        if not self.armed:
            raise Refusal(
                "the trainer is not set up for rounds: pass Trainer(**datamodule.trainer_kwargs()) "
                "(with your own callbacks appended to its list). It also happens when "
                "trainer.estimated_stepping_batches is read in configure_optimizers; use "
                "datamodule.total_steps there"
            )
        assert self.trainer is not None
        epoch = self.trainer.current_epoch
        finished = epoch >= self.rounds * self.reuse
        if not finished:
            index, number = divmod(epoch, self.reuse)
            for listener in self.listeners:
                listener.on_pass_start(index, number)
            self.ensure_round(index)
            self._pass = number
        return self.loader

    def ensure_round(self, index: int) -> None:
        """Make round ``index`` unless it is the present one."""
        if self.round is not None and self.round.index == index:
            self._tensors = self._tensors or RoundTensors(self.round, max_age=self.max_age)
            return
        self._failure_told = False
        try:
            round = make_round(self, index, self.client)
        except BaseException:  # also after sampling: the true reward, annotations, Ctrl-C
            if self.newly_sampled and self.trainer.global_rank == 0:  # type: ignore[union-attr]
                self._on_failure(index, list(self.newly_sampled))
            raise
        self.round, self._tensors = round, RoundTensors(round, max_age=self.max_age)
        self._compare_with_budget(self._tensors, self.client)
        for listener in self.listeners:
            listener.on_round(round)

    def _compare_with_budget(self, tensors: RoundTensors, client: RoundClient) -> None:
        """Say, before its first step, that a round has a group above the token budget."""
        budget = self.micro_batch_tokens
        largest = tensors.largest(whole_prompts=getattr(client, "whole_prompts", True))
        if budget is not None and largest > max(budget, self._largest_said):
            self._largest_said = largest
            log.warning(
                "the largest group of a round has %d tokens, above data.micro_batch_tokens=%d: "
                "it goes through the model alone and needs memory for all of it; fewer or shorter "
                "responses (data.responses_per_prompt, sampler.max_new_tokens) or "
                "model.gradient_checkpointing=true need less",
                largest,
                budget,
            )

    @property
    def client(self) -> RoundClient:
        """The objective, reached through the trainer alone."""
        module = self.trainer.lightning_module  # type: ignore[union-attr]
        if not isinstance(module, RoundClient):
            raise Refusal(
                f"{type(module).__name__} is not a RoundClient; subclass one of lit_pref's "
                "objective families (PairwiseModule, PolicyGradientModule, ...)"
            )
        return module

    def batch(self, position: int) -> Any:
        """Batch ``position`` of the present pass, this process's part."""
        assert self.round is not None and self._tensors is not None
        index, fresh = self.round.index, self.fresh_groups
        groups = self._order.batch(
            index,
            self._pass,
            position,
            fresh=fresh,
            stored=self.prompts_per_round - fresh,
            batches=self.batches_per_pass,
        )
        rank, world = self.trainer.global_rank, self.trainer.world_size  # type: ignore[union-attr]
        steps = (index * self.reuse + self._pass) * self.batches_per_pass + position
        return self._tensors.batch(
            groups,
            mine=self._tensors.share(groups, rank, world),
            version=steps,
            uses=self._pass,
            micro_batch_tokens=self.micro_batch_tokens,
            index=(index, self._pass, position),
        )

    # ------------------------------------------------------------------ checkpoints

    def stored_rows(self, index: int) -> list[int]:
        """Rows of the stored groups of round ``index``, in the order of their slots."""
        if self.stored is None:
            return []
        count = self.prompts_per_round - self.fresh_groups
        return [row for row, _ in self.stored.rows(index, count)]

    def state_dict(self) -> dict[str, Any]:
        """The round buffer and the counters: tensors and primitives only."""
        round = self.round
        found: dict[str, Any] = getattr(self.sampler, "state_dict", dict)()
        return {
            **({"sampler": found} if found else {}),
            "counters": dict(self.counters),
            "round": None
            if round is None
            else round_state(
                round,
                fresh=len(round.groups) if self.stored is None else self.fresh_groups,
                stored=self.stored,
                rows=self.stored_rows(round.index),
            ),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counters = dict(state["counters"])
        if "sampler" in state:
            self.sampler.load_state_dict(state["sampler"])  # type: ignore[union-attr]
        saved = state["round"]
        if saved is not None:
            if saved["index"] >= self.rounds and self.trainer is not None and self.trainer.training:
                raise Refusal(
                    f"the run is in round {saved['index'] + 1} already, and data.rounds="
                    f"{self.rounds} would end it before; give data.rounds={saved['index'] + 1} or "
                    "more (a number given when resuming must be given each time)"
                )
            rows = self.stored_rows(saved["index"])
            self.round = round_from_state(saved, stored=self.stored, rows=rows)
            self._tensors = None
            if self.stored is not None:
                self.held_out_groups = self.stored.held_out

    def transfer_batch_to_device(self, batch: Any, device: torch.device, index: int) -> Any:
        return batch.to(device)
