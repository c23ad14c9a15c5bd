"""From a round to the batches of one process. ``B`` responses, ``T`` response tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lit_pref.functional.partition import balanced
from lit_pref.types import Batch, FlatTokens, Round, View

__all__ = ["AGE_BUCKETS", "RoundTensors", "sampled_logps"]

AGE_BUCKETS: tuple[tuple[str, int], ...] = (
    ("age/share_0", 0), ("age/share_1_9", 1), ("age/share_10_99", 10), ("age/share_100_up", 100),
)  # fmt: skip
"""Columns of the histogram of ages, and the smallest age of each, in steps."""


class RoundTensors:
    """The kept responses of a round as flat tensors, cut into batches by group.

    A batch costs what is in it, however large the round is.

    Args:
        round: groups with ``keep``, ``notes`` and ``view`` in place.
        max_age: groups older than so many steps count for nothing in a batch; None: no limit.
    """

    def __init__(self, round: Round, *, max_age: int | None = None) -> None:
        self.round, self.max_age = round, max_age
        self.tokens = FlatTokens.from_groups(round.groups, round.keep or None)
        self.of_group: list[list[int]] = [[] for _ in round.groups]
        for i, g in enumerate(self.tokens.prompt_of):
            self.of_group[g].append(i)
        self._prompt_starts = _starts(self.tokens.prompt_lengths)
        self._starts = _starts(self.tokens.lengths)
        self._pairs_of = _by_group(round.view.pairs, self.tokens.prompt_of)

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
            uses: how often the round's groups were trained on in it so far.
            micro_batch_tokens: budget of one forward.
            index: (round, pass, position).
        """
        ages = {g: version - self.round.groups[g].born for g in groups}
        tokens, notes, view = self._slice(groups, ages)
        whole = Batch(
            tokens=tokens,
            notes=notes,
            view=view,
            counts=self._counts(len(groups), tokens, view),
            info=self._info(ages, uses),
            micro_batch_tokens=micro_batch_tokens,
            index=index,
        )
        if list(mine) == list(groups):
            return whole
        tokens, notes, view = self._slice(mine, ages)
        order = self._responses(groups, ages)
        place = {i: n for n, i in enumerate(order)}
        local = [place[i] for i in self._responses(mine, ages)]
        return replace(whole, tokens=tokens, notes=notes, view=view, whole=whole, local=local)

    def _info(self, ages: dict[int, int], uses: int) -> dict[str, float]:
        """Facts about the groups of a batch, those that are too old included."""
        count, groups = len(ages), self.round.groups
        before = self.round.uses
        info = {
            "age/mean": sum(ages.values()) / count,
            "age/max": float(max(ages.values())),
            "age/too_old": float(sum(self._too_old(age) for age in ages.values())),
            "onpolicy_share": sum(groups[g].source == "onpolicy" for g in ages) / count,
            "uses": uses + (sum(before[g] for g in ages) / count if before else 0.0),
        }
        lows = [low for _, low in AGE_BUCKETS]
        for (name, low), high in zip(AGE_BUCKETS, [*lows[1:], None], strict=True):
            inside = [a for a in ages.values() if a >= low and (high is None or a < high)]
            info[name] = len(inside) / count
        return info

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

    def _too_old(self, age: int) -> bool:
        return self.max_age is not None and age > self.max_age

    def _responses(self, groups: Sequence[int], ages: dict[int, int]) -> list[int]:
        """Kept responses of groups, ascending; those that are too old have weight 0, so none."""
        return sorted(i for g in groups if not self._too_old(ages[g]) for i in self.of_group[g])

    def _slice(self, groups: Sequence[int], ages: dict[int, int]) -> tuple[FlatTokens, View, View]:
        index = self._responses(groups, ages)
        of = self.tokens.prompt_of
        prompts = sorted({of[i] for i in index})
        place = {p: n for n, p in enumerate(prompts)}
        tokens = FlatTokens(
            prompt_ids=_pieces(self.tokens.prompt_ids, self._prompt_starts, prompts),
            prompt_lengths=[self.tokens.prompt_lengths[p] for p in prompts],
            response_ids=_pieces(self.tokens.response_ids, self._starts, index),
            lengths=[self.tokens.lengths[i] for i in index],
            prompt_of=[place[of[i]] for i in index],
        )
        if not index:  # keep a prompt: a process without responses still runs a stand-in
            first = self.round.groups[groups[0]].prompt.ids if groups else [0]
            tokens.prompt_ids = torch.tensor(first)
            tokens.prompt_lengths = [len(first)]
        notes = self._part(self.round.notes, index)
        notes.response["age"] = torch.tensor([float(ages[of[i]]) for i in index])
        view = self._part(self.round.view, index)
        if self.round.view.pairs is not None:
            pairs = [n for p in prompts for n in self._pairs_of[p]]
            where = {i: n for n, i in enumerate(index)}
            rows = self.round.view.pairs[pairs].tolist()
            mapped = [[where[a], where[b]] for a, b in rows]
            view.pairs = torch.tensor(mapped, dtype=torch.long).reshape(-1, 2)
            view.pair = {name: v[pairs] for name, v in self.round.view.pair.items()}
        return tokens, notes, view

    def _part(self, view: View, index: list[int]) -> View:
        """Columns over responses and tokens for some responses."""
        return View(
            response={k: v[index] for k, v in view.response.items()},
            token={k: _pieces(v, self._starts, index) for k, v in view.token.items()},
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


def _starts(lengths: Sequence[int]) -> list[int]:
    """Where each piece begins, and where the last one ends."""
    return [0, *itertools.accumulate(lengths)]


def _pieces(flat: Tensor, starts: Sequence[int], index: Sequence[int]) -> Tensor:
    parts = [flat[starts[i] : starts[i + 1]] for i in index]
    return torch.cat(parts) if parts else flat.new_zeros((0, *flat.shape[1:]))


def _by_group(pairs: Tensor | None, group_of: Sequence[int]) -> dict[int, list[int]]:
    """Which pairs each group has; a pair is never of two groups."""
    out: dict[int, list[int]] = {g: [] for g in set(group_of)}
    for n, (chosen, rejected) in enumerate([] if pairs is None else pairs.tolist()):
        assert group_of[chosen] == group_of[rejected]
        out[group_of[chosen]].append(n)
    return out


def sampled_logps(round: Round) -> View:
    """[T] log-probs of the kept tokens as they were sampled; NaN where they are not known.

    ``sampled_logps`` are those of the policy while sampling, ``behaviour_logps`` those of the
    distribution that was really sampled from (temperature, top-p). A column is left out where no
    response has it.
    """
    out = View()
    kept = round.kept()
    for name, parts in (
        ("sampled_logps", [r.policy_logps for r in kept]),
        ("behaviour_logps", [r.behaviour_logps for r in kept]),
    ):
        if any(p is not None for p in parts):
            unknown = [[float("nan")] * len(r.ids) for r in kept]
            known = [u if p is None else p for u, p in zip(unknown, parts, strict=True)]
            flat = [x for p in known for x in p]
            out.token[name] = torch.tensor(flat, dtype=torch.float32)
    return out
