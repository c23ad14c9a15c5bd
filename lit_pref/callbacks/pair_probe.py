"""Fixed pairs whose log-probs are followed through training: displacement and coverage."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import lightning as L

from lit_pref.callbacks.occasion import Occasion
from lit_pref.data.evaluation import pairs_by_reward
from lit_pref.functional.pairing import order_scores
from lit_pref.metrics.instruments import Coverage, Displacement
from lit_pref.types import Group, Refusal

__all__ = ["PairProbe", "best_and_worst"]

log = logging.getLogger(__name__)


class PairProbe(L.Callback):
    """Follows the log-probs of fixed pairs, and where the mass went instead.

    ``probe/chosen_change`` and ``probe/rejected_change`` are log-probs now minus those under the
    reference before the first step (under the initial policy where there is no reference), also
    where the reference moves. ``probe/coverage`` is the share of chosen responses whose log-prob
    per token is at least ``floor``.

    Args:
        source: ``stored``: pairs of the task's or the data module's stored groups, those that are
            held out first; nothing is measured without. ``sampled``: where there are none, the
            best and the worst of ``responses`` sampled once from the reference to each validation
            prompt, by the reward (they count as evaluation queries).
        pairs: pairs at most, spread evenly over what there is.
        responses: of the reference to each prompt, for ``sampled``.
        own: follow the policy's own sample and its greedy continuation for so many prompts of
            the probe: ``probe/samples_change``, ``probe/greedy_change`` (log-prob now minus that
            under the reference), ``probe/greedy_logp``. 0: none.
        floor: of coverage, nats per token.
    """

    def __init__(
        self,
        *,
        source: Literal["stored", "sampled"] = "stored",
        pairs: int = 64,
        responses: int = 4,
        own: int = 0,
        floor: float = -5.0,
    ) -> None:
        if source not in ("stored", "sampled"):
            raise Refusal(f"callbacks.pair_probe.source must be stored or sampled, got {source!r}")
        if pairs < 1 or own < 0 or responses < 2:
            raise Refusal(
                "callbacks.pair_probe needs pairs of at least 1, own of at least 0 and responses "
                f"of at least 2, got {pairs}, {own} and {responses}"
            )
        if not floor < 0:
            raise Refusal(f"callbacks.pair_probe.floor is a log-prob below 0, got {floor}")
        self.source, self.pairs, self.responses = source, pairs, responses
        self.own, self.floor = own, floor
        self.groups: list[Group] | None = None
        """The pairs, the chosen response first; None before they are known."""
        self.before: list[float] = []
        """Log-prob of each response before training."""
        self._sampled = False

    def measure(self, occasion: Occasion) -> dict[str, float]:
        """See ``callbacks.occasion.Instrument``."""
        if occasion.measured is None:  # a reward model
            return {}
        if self.groups is None:
            self.groups = self._find(occasion)
        if not self.groups:
            return {}
        now = occasion.logps(self.groups, "policy")["policy"]
        if len(self.before) != len(now):
            self.before = self._baseline(occasion, now)
        change = [a - b for a, b in zip(now, self.before, strict=True)]
        moved = Displacement(sync_on_compute=False)
        moved.update(chosen=change[::2], rejected=change[1::2])
        covered = Coverage(floor=self.floor, sync_on_compute=False)
        covered.update(now[::2], [len(g.responses[0].ids) for g in self.groups])
        out = {**moved.compute(), **covered.compute(), **self._mass(occasion)}
        return {f"probe/{name}": value for name, value in out.items()}

    # ------------------------------------------------------------------ the pairs

    def _find(self, occasion: Occasion) -> list[Group]:
        data = occasion.data
        for stored in _stored(data):
            if found := best_and_worst(stored, self.pairs):
                return found
        if self.source == "stored" or occasion.reward is None:
            return []
        self._sampled = True
        groups = occasion.sample(
            "reference" if occasion.reference_samples_too else "policy",
            data.validation_prompts,
            key=("probe", "pairs"),
            responses=self.responses,
            scored=True,
        )
        return _spread(pairs_by_reward(groups), self.pairs)

    def _baseline(self, occasion: Occasion, now: list[float]) -> list[float]:
        assert self.groups is not None
        if occasion.has_reference:
            return occasion.logps(self.groups, "reference")["reference"]
        if occasion.step > 0:
            log.info("probe: log-probs are compared with those at step %d", occasion.step)
        return now

    def _mass(self, occasion: Occasion) -> dict[str, float]:
        """Log-prob of what the policy says now, against the reference."""
        assert self.groups is not None
        prompts = [g.prompt for g in self.groups[: self.own]]
        if not prompts or not occasion.has_reference:
            return {}
        out = {}
        for name in ("samples", "greedy"):
            said = occasion.sample("policy", prompts, key=("probe", name), greedy=name == "greedy")
            logps = occasion.logps(said, "policy", "reference")
            ours, theirs = (sum(logps[k]) / len(said) for k in ("policy", "reference"))
            out[f"{name}_change"] = ours - theirs
            if name == "greedy":
                out["greedy_logp"] = ours
        return out

    # ------------------------------------------------------------------ resume

    def state_dict(self) -> dict[str, Any]:
        sampled = self._sampled and self.groups is not None
        return {
            "before": list(self.before),
            "groups": [g.state() for g in self.groups or []] if sampled else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = list(state_dict["before"])
        if state_dict["groups"] is not None:
            self.groups = [Group.from_state(g) for g in state_dict["groups"]]
            self._sampled = True


def _stored(data: Any) -> Iterator[Sequence[Group]]:
    """The data module's held-out groups, its stored ones, the task's."""
    stored = None if data.stored is None else data.stored.groups
    for groups in (data.held_out_groups, stored, data.task.offline()):
        if groups is not None and len(groups):
            yield groups


def best_and_worst(groups: Sequence[Group], limit: int) -> list[Group]:
    """The best and the worst response of some groups; groups that order nothing give none.

    Args:
        groups: ranked, scored or labelled; any sequence, read by index.
        limit: pairs at most, from groups spread evenly over all.
    """
    out = []
    # Some groups give no pair: look at twice as many as are wanted, not at a million.
    for group in _spread(groups, 2 * limit):
        scores = order_scores(
            [r.rank for r in group.responses],
            [r.reward for r in group.responses],
            [r.label for r in group.responses],
        )
        if scores is None or max(scores) == min(scores):
            continue
        pair = [group.responses[scores.index(pick(scores))] for pick in (max, min)]
        if all(r.ids for r in pair):
            out.append(Group(prompt=group.prompt, responses=pair, source=group.source))
    return _spread(out, limit)


def _spread(groups: Sequence[Group], limit: int) -> list[Group]:
    size = len(groups)
    count = min(limit, size)
    return [groups[i * size // count] for i in range(count)]
