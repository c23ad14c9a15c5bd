"""The policy against samples of its reference: forward KL and win rates."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L

from lit_pref.callbacks.occasion import Occasion
from lit_pref.data.evaluation import win_shares
from lit_pref.data.gather import gather_strided
from lit_pref.metrics.instruments import SequenceKL, WinRate
from lit_pref.types import Comparison, Group, PreferenceOracle, Refusal

__all__ = ["AgainstReference"]


class AgainstReference(L.Callback):
    """Compares with responses of the reference to the validation prompts.

    They are sampled and scored once while the reference stands still, with draws of their own.
    ``val/forward_kl`` is the mean log-ratio of reference to policy on them; ``val/win_rate`` the
    share of comparisons by reward that the policy's responses win, ties half; with a comparer
    also ``val/judge_win_rate``. Each has a 95 % interval; win rates come at equal length too.

    Args:
        responses: of the reference to each validation prompt.
        comparer: what judges pairs of responses (a ``PreferenceOracle``); None for no judge.
    """

    def __init__(self, *, responses: int = 1, comparer: PreferenceOracle | None = None) -> None:
        if not isinstance(responses, int) or responses < 1:
            raise Refusal(
                f"callbacks.against_reference.responses must be at least 1, got {responses!r}"
            )
        if comparer is not None and not callable(getattr(comparer, "compare", None)):
            raise Refusal(
                "callbacks.against_reference.comparer needs a method compare, got a "
                f"{type(comparer).__name__}"
            )
        self.responses = responses
        self.comparer = comparer

    def measure(self, occasion: Occasion) -> dict[str, float]:
        """See ``callbacks.occasion.Instrument``."""
        measured = occasion.measured
        if measured is None or not occasion.reference_samples_too:
            return {}
        theirs = occasion.reference_samples(self.responses)
        out = {}
        if "val/forward_kl" not in occasion.metrics:  # else it is exact
            out = self._forward_kl(occasion, theirs.groups, theirs.logps)
        if _scored(measured.groups) and _scored(theirs.groups):
            shares = win_shares(measured.groups, theirs.groups)
            out.update(_rate("win_rate", shares, measured.groups, theirs.groups))
        if self.comparer is not None:
            shares = self._judge(occasion, measured.groups, theirs.groups)
            out.update(_rate("judge_win_rate", shares, measured.groups, theirs.groups))
        return {f"val/{name}": value for name, value in out.items()}

    def _forward_kl(
        self, occasion: Occasion, groups: list[Group], reference: Sequence[float]
    ) -> dict[str, float]:
        policy = occasion.logps(groups, "policy")["policy"]
        count = self.responses  # one number per prompt: its responses are not independent
        by_prompt = [
            [sum(x[i : i + count]) / count for i in range(0, len(x), count)]
            for x in (list(reference), policy)
        ]
        metric = SequenceKL("forward_kl", sync_on_compute=False)
        metric.update(*by_prompt)
        return metric.compute()

    def _judge(self, occasion: Occasion, ours: list[Group], theirs: list[Group]) -> list[float]:
        """Share of its comparisons that the policy wins, by prompt; each process asks for some."""
        rank, world = occasion.trainer.global_rank, occasion.trainer.world_size
        pairs = list(zip(ours, theirs, strict=True))
        mine = pairs[rank::world]
        assert self.comparer is not None
        return gather_strided(_compared(self.comparer, mine), world)


def _compared(comparer: PreferenceOracle, pairs: Sequence[tuple[Group, Group]]) -> list[float]:
    """The first response of each side is judged."""
    if not pairs:
        return []
    questions = [Comparison(group=_together(*pair), first=0, second=1) for pair in pairs]
    wins = [float(x) for x in comparer.compare(questions)]
    if len(wins) != len(pairs) or not all(0 <= w <= 1 for w in wins):
        raise Refusal(
            f"{type(comparer).__name__}.compare must return {len(pairs)} numbers in [0, 1], one "
            f"per comparison, got {wins[:5]}{'...' if len(wins) > 5 else ''} ({len(wins)} in all)"
        )
    return wins


def _together(ours: Group, theirs: Group) -> Group:
    """The first response of each side as one group."""
    both = [ours.responses[0], theirs.responses[0]]
    return Group(prompt=ours.prompt, responses=both, source=ours.source)


def _scored(groups: Sequence[Group]) -> bool:
    return all(r.reward is not None for g in groups for r in g.responses)


def _rate(
    name: str, shares: Sequence[float], ours: Sequence[Group], theirs: Sequence[Group]
) -> dict[str, float]:
    metric = WinRate(name, sync_on_compute=False)
    metric.update(shares, [_length(a) - _length(b) for a, b in zip(ours, theirs, strict=True)])
    return metric.compute()


def _length(group: Group) -> float:
    """Mean length of a group's responses, in tokens."""
    return sum(len(r.ids) for r in group.responses) / len(group.responses)
