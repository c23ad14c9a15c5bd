"""One line, once, when a run shows one of the usual failures; with what to do about it."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L

from lit_pref.types import Group, Refusal, Round

__all__ = ["Alarms"]

log = logging.getLogger(__name__)

_REMEDIES = {
    "displacement": (
        "the log-prob of the chosen responses fell at {count} evaluations in a row, now to "
        "{value:.3g} nats below the reference (probe/chosen_change). {first}, add an NLL term "
        "(objective.nll_coef where there is one), or raise objective.beta"
    ),
    "entropy": (
        "the entropy has fallen to {value:.3g} nats per token, {share:.0%} of that before training "
        "(val/entropy): the policy says almost the same thing every time. Raise objective.beta or "
        "the KL weight, lower optimizer.lr, or stop here"
    ),
    "kl": (
        "the KL to the reference is {value:.3g} nats per response, {rate:.2g} per token (val/kl). "
        "Raise objective.beta or the KL weight, lower optimizer.lr, or stop earlier"
    ),
    "no_signal": (
        "in {value:.0%} of the groups of the last {count} round(s) all rewards are equal "
        "(round/no_signal): nothing to learn from them. Use a finer reward, more responses "
        "(data.responses_per_prompt), or prompts that are neither too easy nor too hard"
    ),
}


class Alarms(L.Callback):
    """Warns once per cause; says nothing while all is well.

    With fresh samples the chosen responses of the probe are old ones: that they fall while the
    true reward rises is learning, and does not count.

    Args:
        patience: evaluations in a row with a falling chosen log-prob, and rounds in a row without
            signal, that make an alarm.
        entropy_share: alarm when entropy is below this share of that before training (0: never).
        kl_per_token: alarm when KL per response token is above so many nats (null: never).
        no_signal: alarm when more than this share of the groups has equal rewards (1: never).
    """

    def __init__(
        self,
        *,
        patience: int = 3,
        entropy_share: float = 0.1,
        kl_per_token: float | None = 5.0,
        no_signal: float = 0.5,
    ) -> None:
        if not isinstance(patience, int) or patience < 1:
            raise Refusal(f"callbacks.alarms.patience must be at least 1, got {patience!r}")
        for name, value in (("entropy_share", entropy_share), ("no_signal", no_signal)):
            if not 0 <= value <= 1:
                raise Refusal(f"callbacks.alarms.{name} is a share in [0, 1], got {value}")
        self.patience = patience
        self.entropy_share, self.kl_per_token = entropy_share, kl_per_token
        self.no_signal = no_signal
        self.said: list[str] = []
        self._chosen: float | None = None
        self._best: float | None = None
        self._falls = 0
        self._entropy: float | None = None
        self._silent = 0
        self._trainer: Any = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._trainer = trainer
            trainer.datamodule.listeners.append(self)  # type: ignore[attr-defined]

    def _say(self, cause: str, **values: Any) -> None:
        if cause in self.said:
            return
        self.said.append(cause)
        if self._trainer.is_global_zero:
            step = self._trainer.global_step
            log.warning("ALARM at step %d: %s", step, _REMEDIES[cause].format(**values))

    # ------------------------------------------------------------------ evaluations

    def on_evaluation(self, trainer: L.Trainer, metrics: dict, groups: list[Group]) -> None:
        """Called by ``Evaluation`` with everything that was measured."""
        self._watch_chosen(trainer, metrics)
        entropy = metrics.get("val/entropy")
        if entropy is not None:
            self._entropy = entropy if self._entropy is None else self._entropy
            if self._entropy > 0 and entropy < self.entropy_share * self._entropy:
                self._say("entropy", value=entropy, share=entropy / self._entropy)
        kl, length = metrics.get("val/kl"), metrics.get("val/mean_length")
        if kl is not None and length and self.kl_per_token is not None:
            if kl / length > self.kl_per_token:
                self._say("kl", value=kl, rate=kl / length)

    def _watch_chosen(self, trainer: Any, metrics: dict[str, float]) -> None:
        chosen, reward = metrics.get("probe/chosen_change"), metrics.get("val/reward")
        fresh = _fresh(trainer.datamodule)
        learning = reward is not None and (self._best is None or reward > self._best)
        if learning:
            self._best = reward
        if chosen is None:
            return
        fell = chosen < 0 and (self._chosen is None or chosen < self._chosen)
        self._falls = self._falls + 1 if fell and not (fresh and learning) else 0
        self._chosen = chosen
        if self._falls >= self.patience:
            first = "Lower optimizer.lr or data.reuse" if fresh else "Use data=onpolicy"
            self._say("displacement", count=self._falls, value=-chosen, first=first)

    # ------------------------------------------------------------------ rounds

    def on_round(self, round: Round) -> None:
        """Called by the data module for each complete round."""
        sets = [
            {r.reward for r in g.responses}
            for g in round.groups
            if len(g.responses) > 1 and all(r.reward is not None for r in g.responses)
        ]
        if not sets:
            return
        share = sum(len(s) == 1 for s in sets) / len(sets)
        self._silent = self._silent + 1 if share > self.no_signal else 0
        # A run that has fewer rounds cannot wait for more.
        needed = min(self.patience, self._trainer.datamodule.rounds)
        if self._silent >= needed:
            self._say("no_signal", value=share, count=self._silent)

    def on_pass_start(self, index: int, number: int) -> None:
        """Nothing to watch."""

    def on_progress(self, stage: str, done: int, total: int) -> None:
        """Nothing to watch."""

    def on_failed_round(self, index: int, groups: list[Group]) -> None:
        """The failure speaks for itself."""

    # ------------------------------------------------------------------ resume

    def state_dict(self) -> dict[str, Any]:
        return {
            "said": list(self.said),
            "chosen": self._chosen,
            "best": self._best,
            "falls": self._falls,
            "entropy": self._entropy,
            "silent": self._silent,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.said = list(state_dict["said"])
        self._chosen, self._best = state_dict["chosen"], state_dict["best"]
        self._falls = state_dict["falls"]
        self._entropy, self._silent = state_dict["entropy"], state_dict["silent"]


def _fresh(data: Any) -> bool:
    """Whether all groups of a round are sampled from the policy as it is."""
    groups = getattr(data, "fresh_groups", None)
    return (
        bool(getattr(data, "fresh", False)) if groups is None else groups == data.prompts_per_round
    )
