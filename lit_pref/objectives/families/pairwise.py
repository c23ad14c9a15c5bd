"""Objectives on pairs of responses. ``N`` pairs, ``B`` responses, ``T`` response tokens."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lit_pref.objectives.families.paired import PairedModule, PairwiseArgs
from lit_pref.objectives.returned import losses_and_metrics
from lit_pref.transfer import sent
from lit_pref.types import Batch, Needs, TokenStats

__all__ = ["PairwiseArgs", "PairwiseModule", "Side", "reward_metrics"]


@dataclass(slots=True)
class Side:
    """The chosen or the rejected responses of some pairs.

    Attributes:
        logps: [N] log-prob of each response under the policy.
        ref_logps: [N] under the reference, or None.
        lengths: [N] response lengths in tokens.
        index: [N] which response of the micro-batch each is.
        token_logps: [T] log-probs of all response tokens of the micro-batch.
        owner: [T] response that owns each token.
        ref_token_logps: [T] the reference's, or None.
        all_lengths: [B] lengths of all responses of the micro-batch.
        weight: [N] how often each pair counts in the mean over pairs, or None: all the same.
        stats: all statistics of the forward.
        sizes: ``lengths`` as numbers of the host, for sizes of tensors; None if nobody knows them.
    """

    logps: Tensor
    ref_logps: Tensor | None
    lengths: Tensor
    index: Tensor
    token_logps: Tensor
    owner: Tensor
    stats: TokenStats
    ref_token_logps: Tensor | None = None
    all_lengths: Tensor | None = None
    sizes: list[int] | None = None
    weight: Tensor | None = None

    @property
    def log_ratio(self) -> Tensor:
        """[N] log-prob over the reference's, in nats."""
        assert self.ref_logps is not None, "the objective must declare needs.reference"
        return self.logps - self.ref_logps

    @property
    def mean_logps(self) -> Tensor:
        """[N] log-prob per token, in nats; 0 for an empty response."""
        return self.logps / self.lengths.clamp(min=1)

    @property
    def mean_log_ratio(self) -> Tensor:
        """[N] log-ratio per token, in nats."""
        return self.log_ratio / self.lengths.clamp(min=1)


def reward_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """The usual metrics of implicit rewards, [N] each."""
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen),
    }


class PairwiseModule(PairedModule):
    """Learns from comparisons: override ``pair_loss``.

    Args:
        *args: see ``PairedModule``.
    """

    family: ClassVar[str] = "pairwise"
    needs = Needs(pairs=True, responses=2)

    @abstractmethod
    def pair_loss(
        self, chosen: Side, rejected: Side, *, margin: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each pair.

        Args:
            chosen: the winners.
            rejected: the losers, in the same order.
            margin: [N] preference margin given by the data, 0 where it has none.

        Returns:
            [N] losses, and [N] tensors to log as means over pairs.
        """

    # ------------------------------------------------------------------ the loss

    def sides(self, stats: TokenStats, batch: Batch) -> tuple[Side, Side]:
        """Chosen and rejected sides of the pairs of a micro-batch."""
        tokens, owner = batch.tokens, batch.tokens.owner()
        logps = self.response_sums(stats.logps, tokens)
        ref = batch.notes.token.get("ref_logps")
        ref_logps = None if ref is None else self.response_sums(ref, tokens)
        lengths = sent(tokens.lengths, logps.device)
        pairs = batch.view.pairs
        assert pairs is not None
        numbers = batch.view.pair_numbers()
        weight = batch.view.pair["weight"].to(logps)

        def side(which: int) -> Side:
            index = pairs[:, which]
            return Side(
                logps=logps[index],
                ref_logps=None if ref_logps is None else ref_logps[index],
                lengths=lengths[index],
                index=index,
                token_logps=stats.logps,
                owner=owner,
                stats=stats,
                ref_token_logps=ref,
                all_lengths=lengths,
                sizes=[tokens.lengths[pair[which]] for pair in numbers],
                weight=weight,
            )

        return side(0), side(1)

    def batch_loss(self, stats: TokenStats, batch: Batch) -> Tensor:
        chosen, rejected = self.sides(stats, batch)
        weight = batch.view.pair["weight"].to(stats.logps)
        losses, metrics = losses_and_metrics(
            self.pair_loss(chosen, rejected, margin=batch.view.pair["margin"].to(stats.logps)),
            len(weight),
            method=f"{type(self).__name__}.pair_loss",
            per="pair",
        )
        metrics = {"logps/chosen": chosen.logps, "logps/rejected": rejected.logps, **metrics}
        self.window.add_all(metrics, weight)
        return (losses * weight).sum() / batch.counts["pair/weight"]
