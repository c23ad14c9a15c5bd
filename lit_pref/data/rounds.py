"""Making a round, and turning one into primitives and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lit_pref.data.collate import sampled_logps
from lit_pref.data.gather import annotate_over_processes
from lit_pref.data.stored import StoredGroups
from lit_pref.types import Group, Round, RoundClient, View

if TYPE_CHECKING:
    from lit_pref.data.datamodule import RoundDataModule

__all__ = ["RoundListener", "make_round", "round_from_state", "round_state"]


class RoundListener(Protocol):
    """What is told about rounds (progress bars, sample files)."""

    def on_pass_start(self, index: int, number: int) -> None:
        """Pass ``number`` over round ``index`` comes next; the round may have to be made first."""
        ...

    def on_progress(self, stage: str, done: int, total: int) -> None:
        """``stage``: ``"generating"``, ``"scoring"``, ``"annotating"``; counts are responses.

        Under several processes each annotates its share, and these are the counts of one.
        """
        ...

    def on_round(self, round: Round) -> None:
        """A round is complete: sampled, scored, annotated."""
        ...

    def on_failed_round(self, index: int, groups: list[Group]) -> None:
        """A round could not be completed; these groups were there."""
        ...


def make_round(data: RoundDataModule, index: int, client: RoundClient) -> Round:
    """Groups, what the objective uses of them, its notes and its view."""
    data.newly_sampled, data.round_counts = [], {}
    client.begin_round(index)
    groups = data.make_groups(index, client)
    assert len(groups) == data.prompts_per_round
    strict = data.fresh_groups == data.prompts_per_round == data.batch_size and data.reuse == 1
    counts, uses = {**data.task.counts(), **data.round_counts}, uses_before(data, index)
    round = Round(index=index, groups=groups, counts=counts, strict=strict, uses=uses)
    round.keep = client.select(round, seed=data.seed)
    round.notes = annotate_over_processes(
        client,
        round,
        data.trainer,
        data.micro_batch_tokens,
        progress=lambda done, total: data.tell("annotating", done, total),
    )
    round.notes.token.update(sampled_logps(round).token)
    round.view = client.view(round, seed=data.seed)
    client.observe(round)
    assert data.trainer is not None
    values, asked = data.reward_log.of_round(groups, world=data.trainer.world_size)
    round.counts.update(values)
    data.counters["eval_queries"] += asked
    if strict:  # then it is the policy now, and a ratio exactly 1
        round.notes.token.pop("old_logps", None)
    return round


def uses_before(data: RoundDataModule, index: int) -> list[int]:
    """How often each group of a round was trained on in earlier rounds."""
    if data.stored is None:
        return []
    rows = data.stored.rows(index, data.prompts_per_round - data.fresh_groups)
    return [0] * data.fresh_groups + [times * data.reuse for _, times in rows]


def round_state(
    round: Round, *, fresh: int, stored: StoredGroups | None, rows: Sequence[int]
) -> dict[str, Any]:
    """A round as tensors and primitives: whole groups where no file has them, else row ids.

    Args:
        round: the round.
        fresh: its first so many groups were sampled from the policy.
        stored: where the others are from.
        rows: their rows.
    """
    return {
        "index": round.index,
        "groups": [g.state() for g in round.groups[:fresh]],
        "stored": None if stored is None else stored.state(rows, round.groups[fresh:]),
        "keep": round.keep,
        "notes": round.notes.state(),
        "view": round.view.state(),
        "counts": dict(round.counts),
        "strict": round.strict,
        "uses": list(round.uses),
    }


def round_from_state(
    saved: dict[str, Any], *, stored: StoredGroups | None, rows: Sequence[int]
) -> Round:
    """Inverse of ``round_state``."""
    groups = [Group.from_state(g) for g in saved["groups"]]
    if stored is not None:
        groups += stored.restore(saved["stored"], rows)
    return Round(
        index=saved["index"],
        groups=groups,
        keep=saved["keep"],
        notes=View(**saved["notes"]),
        view=View(**saved["view"]),
        counts=dict(saved["counts"]),
        strict=saved["strict"],
        uses=list(saved["uses"]),
    )
