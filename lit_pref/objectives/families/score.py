"""Objectives that train a score instead of a policy. ``N`` pairs, ``B`` responses, ``H`` hidden."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor
from typing_extensions import Unpack

from lit_pref.objectives.families.paired import PairedModule, PairwiseArgs
from lit_pref.objectives.families.pairwise import reward_metrics
from lit_pref.objectives.returned import checked_losses
from lit_pref.objectives.run_data import data_of
from lit_pref.policies.heads import ScalarHead, freeze_output_layer
from lit_pref.policies.scorer import save_scorer
from lit_pref.transfer import sent
from lit_pref.types import Batch, FlatTokens, Group, Needs, Policy, Refusal, TokenStats

__all__ = ["ScoreModule"]


class ScoreModule(PairedModule):
    """A number for each response, read off the hidden state after its last token.

    Override ``score_loss``. The score of a response depends on exactly the tokens of prompt and
    response that a policy would be trained on; an end of sequence counts only where it is there.

    It trains no policy: it is not sampled from and has no use for a reference, so none is kept.
    The output layer over the vocabulary is not trained.

    Args:
        policy: the model whose hidden states are read; all of it is trained.
        head: from hidden state to score; a normal initialisation by default.
        **shared: see ``PairedModule``.

    Raises:
        Refusal: a ``negative_weight``: no loss on scores has a gradient in log-probs.
    """

    family: ClassVar[str] = "score"
    needs = Needs(pairs=True, responses=2, policy=False)
    negative_gradient = False
    shards = False

    def __init__(
        self, policy: Policy, *, head: ScalarHead | None = None, **shared: Unpack[PairwiseArgs]
    ) -> None:
        if shared.get("negative_weight", 1.0) != 1.0:
            raise Refusal(
                f"objective.negative_weight={shared['negative_weight']} does not apply to "
                f"{type(self).__name__}: its loss has no gradient in log-probs; leave it out"
            )
        shared["reference"] = None
        super().__init__(policy, **shared)
        self.score_head = ScalarHead(init="normal") if head is None else head

    @abstractmethod
    def score_loss(self, chosen: Tensor, rejected: Tensor, *, margin: Tensor) -> Tensor:
        """Loss of each pair, [N].

        Args:
            chosen: [N] scores of the winners.
            rejected: [N] scores of the losers, in the same order.
            margin: [N] preference margin given by the data, 0 where it has none.
        """

    # ------------------------------------------------------------------ the loss

    def token_stats(self) -> Iterable[str]:
        return ("final_hidden",)

    def scores(self, stats: TokenStats) -> Tensor:
        """[B] scores of the responses of a forward."""
        assert stats.final_hidden is not None
        return self.score_head(stats.final_hidden)

    def batch_loss(self, stats: TokenStats, batch: Batch) -> Tensor:
        scores, pairs = self.scores(stats), batch.view.pairs
        assert pairs is not None
        chosen, rejected = scores[pairs[:, 0]], scores[pairs[:, 1]]
        weight = batch.view.pair["weight"].to(scores)
        losses = checked_losses(
            self.score_loss(chosen, rejected, margin=batch.view.pair["margin"].to(scores)),
            len(weight),
            method=f"{type(self).__name__}.score_loss",
            per="pair",
        )
        self.window.add_all(reward_metrics(chosen, rejected), weight)
        return (losses * weight).sum() / batch.counts["pair/weight"]

    # ------------------------------------------------------------------ measuring

    @torch.no_grad()
    def measure_groups(self, groups: Sequence[Group]) -> dict[str, float]:
        """How the pairs of some groups are ordered; each process scores its stride.

        Args:
            groups: never trained on, the same list in every process.

        Returns:
            ``val/accuracy`` (share of pairs whose chosen response scores higher, equal scores
            count half), ``val/margin`` (mean score difference) and ``val/loss``; nothing if
            there is no pair.
        """
        mine = list(enumerate(groups))[self.trainer.global_rank :: self.trainer.world_size]
        scores = self.group_scores([group for _, group in mine])
        index: list[tuple[int, int]] = []
        margins: list[float] = []
        start = 0
        for slot, group in mine:
            for better, worse in self.group_pairs(group, slot, 0, 0):
                index.append((start + better, start + worse))
                margins.append(group.margin or 0.0)
            start += len(group.responses)
        sums = torch.zeros(4, device=self.device)
        if index:
            at = sent(index, scores.device)
            margin = sent(margins, scores.device).to(scores)
            chosen, rejected = scores[at[:, 0]], scores[at[:, 1]]
            right = (chosen > rejected).to(scores) + 0.5 * (chosen == rejected).to(scores)
            losses = self.score_loss(chosen, rejected, margin=margin)
            values = (right, chosen - rejected, losses, torch.ones_like(right))
            sums = torch.stack([v.sum() for v in values])
        *totals, count = self.sum_over_processes(sums.float()).tolist()
        names = ("val/accuracy", "val/margin", "val/loss")
        return {n: t / count for n, t in zip(names, totals, strict=True)} if count else {}

    @torch.no_grad()
    def group_scores(self, groups: Sequence[Group]) -> Tensor:
        """[B] scores of all responses of some groups, in order."""
        forward = self.forward_pass(data_of(self.trainer).micro_batch_tokens)
        stats = forward("policy", FlatTokens.from_groups(groups), stats=("final_hidden",))
        if stats.final_hidden is None:
            return torch.zeros(0, device=self.device)
        return self.score_head(stats.final_hidden.to(self.device))

    def _does_not_sample(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise Refusal(
            f"trainer.validate, test and predict sample from a policy, and {type(self).__name__} "
            "trains none; its accuracy on held-out pairs (val/accuracy) is measured during fit"
        )

    validation_step = test_step = predict_step = _does_not_sample

    # ------------------------------------------------------------------ set-up and export

    def configure_model(self) -> None:
        super().configure_model()
        freeze_output_layer(self.policy)
        dtype = next(self.policy.parameters()).dtype
        self.score_head.prepare(self.policy.hidden_size, dtype=dtype)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [*super().parameter_groups(), {"params": list(self.score_head.parameters())}]

    def export(self, folder: str) -> None:
        """A Hugging Face sequence-classification folder; see ``policies.scorer.save_scorer``."""
        save_scorer(self.policy, self.score_head, folder)  # type: ignore[arg-type]
