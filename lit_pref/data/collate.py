"""From a round to the batches of one process. ``B`` responses, ``T`` response tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lit_pref.functional.partition import balanced
from lit_pref.types import Batch, FlatTokens, Round, View

__all__ = ["RoundTensors", "sampled_logps"]


class RoundTensors:
    """The kept responses of a round as flat tensors, cut into batches by group.

    Args:
        round: groups with ``keep``, ``notes`` and ``view`` in place.
    """

    def __init__(self, round: Round) -> None:
        self.round = round
        self.tokens = FlatTokens.from_groups(round.groups, round.keep or None)
        self.of_group: list[list[int]] = [[] for _ in round.groups]
        for i, g in enumerate(self.tokens.prompt_of):
            self.of_group[g].append(i)

    def batch(
        self,
        groups: Sequence[int],
        *,
        mine: Sequence[int],
        version: int,
        uses: int,
        micro_batch_tokens: int | None,
        index: tuple[int, int, int],
    ) -> Batch:
        """One optimizer step.

        Args:
            groups: the groups of the batch, over all processes.
            mine: those of them that this process trains on.
            version: optimizer steps taken so far.
            uses: how often these groups were trained on before.
            micro_batch_tokens: budget of one forward.
            index: (round, pass, position).
        """
        ages = [version - self.round.groups[g].policy_version for g in groups]
        info = {
            "age/mean": sum(ages) / len(ages),
            "age/max": float(max(ages)),
            "uses": float(uses),
        }
        tokens, notes, view = self._slice(groups)
        whole = Batch(
            tokens=tokens,
            notes=notes,
            view=view,
            counts=self._counts(len(groups), tokens, view),
            info=info,
            micro_batch_tokens=micro_batch_tokens,
            index=index,
        )
        if list(mine) == list(groups):
            return whole
        tokens, notes, view = self._slice(mine)
        order = self._responses(groups)
        place = {i: n for n, i in enumerate(order)}
        local = [place[i] for i in self._responses(mine)]
        return replace(whole, tokens=tokens, notes=notes, view=view, whole=whole, local=local)

    def share(self, groups: Sequence[int], rank: int, world: int) -> list[int]:
        """The groups of a batch that one process trains on: nearly the same tokens for each."""
        if world == 1:
            return list(groups)
        prompts, lengths = self.tokens.prompt_lengths, self.tokens.lengths
        sizes = [prompts[g] + sum(lengths[i] for i in self.of_group[g]) for g in groups]
        return [groups[n] for n in balanced(sizes, world)[rank]]

    def largest(self, *, whole_prompts: bool) -> int:
        """Tokens of the largest part that cannot be cut: a group, or a prompt with a response."""
        prompts, lengths = self.tokens.prompt_lengths, self.tokens.lengths
        if whole_prompts:
            sizes = [
                prompts[g] + sum(lengths[i] for i in mine) for g, mine in enumerate(self.of_group)
            ]
        else:
            sizes = [prompts[g] + n for g, n in zip(self.tokens.prompt_of, lengths, strict=True)]
        return max(sizes, default=0)

    def _responses(self, groups: Sequence[int]) -> list[int]:
        return sorted(i for g in groups for i in self.of_group[g])

    def _slice(self, groups: Sequence[int]) -> tuple[FlatTokens, View, View]:
        index = self._responses(groups)
        lengths = self.tokens.lengths
        tokens = self.tokens.select(index)
        if not index:  # keep a prompt: a process without responses still runs a stand-in
            first = self.round.groups[groups[0]].prompt.ids if groups else [0]
            tokens.prompt_ids = torch.tensor(first)
            tokens.prompt_lengths = [len(first)]
        return (
            tokens,
            self.round.notes.select(index, lengths),
            self.round.view.select(index, lengths),
        )

    @staticmethod
    def _counts(groups: int, tokens: FlatTokens, view: View) -> dict[str, float]:
        """Sums by which losses are normalised."""
        weight = view.response.get("weight")
        counts = {
            "groups": float(groups),
            "responses": float(tokens.num_responses),
            "tokens": float(sum(tokens.lengths)),
            "pairs": 0.0 if view.pairs is None else float(len(view.pairs)),
        }
        if weight is not None:
            lengths = torch.tensor(tokens.lengths, dtype=weight.dtype)
            counts["tokens"] = float((lengths * (weight != 0)).sum())
            counts["responses"] = float((weight != 0).sum())
        for name, values in view.response.items():
            counts[f"response/{name}"] = float(values.double().sum())
        for name, values in view.pair.items():
            counts[f"pair/{name}"] = float(values.double().sum())
        return counts


def sampled_logps(round: Round) -> View:
    """[T] log-probs of the kept tokens as they were sampled; left out where any is missing.

    ``sampled_logps`` are those of the policy while sampling, ``behaviour_logps`` those of the
    distribution that was really sampled from (temperature, top-p).
    """
    out = View()
    kept = round.kept()
    for name, parts in (
        ("sampled_logps", [r.policy_logps for r in kept]),
        ("behaviour_logps", [r.behaviour_logps for r in kept]),
    ):
        if parts and all(p is not None for p in parts):
            flat = [x for p in parts for x in p]  # type: ignore[union-attr]
            out.token[name] = torch.tensor(flat, dtype=torch.float32)
    return out
