"""A stored set of groups: the same loop with the sampler replaced by the set."""

from __future__ import annotations

from typing import Any, Literal

from lit_pref.data.datamodule import RoundDataModule
from lit_pref.data.generate import round_prompts
from lit_pref.functional.rng import stream_position
from lit_pref.tasks.base import Task
from lit_pref.types import Group, Refusal, Round, RoundClient, View

__all__ = ["OfflineDataModule"]


class OfflineDataModule(RoundDataModule):
    """``data=offline``: the task's stored preference data.

    A bandit task has no file; its offline data are ``task.offline_prompts`` groups sampled once
    from the initial policy and scored by the reward.

    Args:
        task: must have offline data.
        prompts_per_round: groups of a round: ``"all"`` makes the whole set one round with
            ``reuse`` passes, as in the paper; a number takes the next groups of the shuffled set.
        batch_size: groups per optimizer step. With ``"all"`` a set that it does not divide loses
            its last few groups, another few in every run seed; they are counted and logged.
        held_out: share of the stored groups, from the end, that is never trained on, at least
            one group (``held_out_groups``; reward models are measured on them). Of a bandit,
            whose data is sampled, all validation prompts with fresh responses instead. 0: none.
        *args: see ``RoundDataModule``.
    """

    source = "offline"
    fresh = False

    def __init__(
        self,
        task: Task,
        *,
        prompts_per_round: int | Literal["all"] = "all",
        batch_size: int,
        held_out: float = 0.0,
        **rest: Any,
    ) -> None:
        if not 0 <= held_out < 1:
            raise Refusal(f"data.held_out is a share in [0, 1), got {held_out}; 0 holds none out")
        stored = task.offline()
        if stored is None and not task.offline_prompts:
            raise Refusal(
                f"task {task.name!r} has no offline data; give task.pairs=FILE (JSONL with "
                "prompt, chosen, rejected) or use data=onpolicy"
            )
        held: list[Group] = []
        if stored is not None and held_out > 0:
            count = max(1, round(held_out * len(stored)))
            stored, held = stored[:-count], stored[-count:]
        size = len(stored) if stored is not None else task.offline_prompts
        if size < batch_size:
            raise Refusal(
                f"the offline set has {size} groups, fewer than data.batch_size={batch_size}; "
                f"use data.batch_size={size} or less, or more data"
            )
        self.stored = stored
        self.size = size
        self.left_out = 0
        if prompts_per_round == "all":
            prompts_per_round = size // batch_size * batch_size
            self.left_out = size - prompts_per_round
        super().__init__(task, prompts_per_round=prompts_per_round, batch_size=batch_size, **rest)
        self.held_out, self.held_out_groups = held_out, held

    def make_groups(self, index: int, client: RoundClient) -> list[Group]:
        if self.stored is None:
            self.stored = self._sample_once()
        rows = self.rows(index)
        return [self.stored[row] for row in rows]

    def rows(self, index: int) -> list[int]:
        """Rows of round ``index``: a piece of an endless stream of permutations."""
        count = self.prompts_per_round
        return [
            stream_position(self.size, index * count + slot, self.seed, "rows")[0]
            for slot in range(count)
        ]

    def least_responses(self) -> int:
        if self.stored is None:
            return self.responses_per_prompt
        return min(len(g.responses) for g in self.stored)

    def behaviours_known(self) -> bool:
        stored = self.stored or []  # a bandit's set is sampled by us
        return all(r.behaviour_logps is not None for g in stored for r in g.responses)

    def scored(self) -> bool:
        if self.stored is None:
            return self.reward is not None
        return all(r.reward is not None for g in self.stored for r in g.responses)

    def _sample_once(self) -> list[Group]:
        """The bandit's offline data, from the initial policy."""
        prompts = round_prompts(self.task.prompts(), 0, self.size, self.seed)
        if self.held_out > 0:
            self.held_out_groups = self._sample_held_out()
        return self.sample(prompts, ("offline",), index=0, version=0, source="offline")

    def _sample_held_out(self) -> list[Group]:
        """Validation prompts, of the initial policy too; they count as evaluation."""
        before = dict(self.counters)
        groups = self.sample(
            self.validation_prompts, ("held_out",), index=0, version=0, source="offline"
        )
        queries = self.counters["reward_queries"] - before["reward_queries"]
        self.counters = {**before, "eval_queries": before["eval_queries"] + queries}
        return groups

    # ------------------------------------------------------------------ checkpoints

    def round_state(self, round: Round) -> dict[str, Any]:
        """Row ids instead of groups; only generated data is stored, since no file holds it."""
        state = {
            "index": round.index,
            "rows": self.rows(round.index),
            "keep": round.keep,
            "notes": round.notes.state(),
            "view": round.view.state(),
            "counts": dict(round.counts),
            "strict": round.strict,
        }
        if self.task.offline_prompts and self.stored is not None:
            state["stored"] = [g.state() for g in self.stored]
            state["held_out"] = [g.state() for g in self.held_out_groups]
        return state

    def round_from_state(self, saved: dict[str, Any]) -> Round:
        if "stored" in saved:
            self.stored = [Group.from_state(g) for g in saved["stored"]]
            self.held_out_groups = [Group.from_state(g) for g in saved.get("held_out", [])]
        assert self.stored is not None
        if saved["rows"] != self.rows(saved["index"]):
            raise Refusal(
                "the checkpoint was written for other offline data (its rows differ); resume with "
                "the same file, seed and data.prompts_per_round"
            )
        return Round(
            index=saved["index"],
            groups=[self.stored[row] for row in saved["rows"]],
            keep=saved["keep"],
            notes=View(**saved["notes"]),
            view=View(**saved["view"]),
            counts=dict(saved["counts"]),
            strict=saved["strict"],
        )
