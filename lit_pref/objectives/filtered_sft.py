"""Filtered supervised fine-tuning: imitate the responses that score best (ReST, RAFT)."""

from __future__ import annotations

from typing_extensions import Unpack

from lit_pref.functional.supervised import top_k_mask
from lit_pref.objectives.families.supervised import SupervisedArgs, SupervisedModule, Weights
from lit_pref.types import Group, Needs, Policy, Refusal, Round

__all__ = ["FilteredSFT"]


class FilteredSFT(SupervisedModule):
    r"""Maximum likelihood of the responses that pass a filter.

    .. math:: -\frac{1}{Z}\sum_i [r_i \in \mathrm{top}_k(x) \text{ or } r_i > c] \log\pi(y_i)

    (Top-k per prompt: RAFT, arXiv 2304.06767; threshold: ReST, arXiv 2308.08998, eq. of the
    Improve step.) Z counts what passed.

    Args:
        policy: the model to train.
        top_k: how many of each prompt's responses pass; of equal rewards the first.
        threshold: responses with a larger reward pass. Give it or ``top_k``; with both, a
            response must pass both.
        **shared: see ``SupervisedModule``.

    Raises:
        Refusal: neither filter is given, or an argument out of range.
    """

    needs = Needs(rewards=True)
    paper = "2308.08998"

    def __init__(
        self,
        policy: Policy,
        *,
        top_k: int | None = 3,
        threshold: float | None = None,
        **shared: Unpack[SupervisedArgs],
    ) -> None:
        if top_k is None and threshold is None:
            raise Refusal(
                "filtered_sft needs a filter; give objective.top_k=3 (per prompt) or "
                "objective.threshold=0 (on the reward). Without any it would be objective=sft"
            )
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise Refusal(
                f"objective.top_k must be a whole number from 1, got {top_k!r}; null for no limit"
            )
        super().__init__(policy, **shared)
        self.top_k = top_k
        self.threshold = None if threshold is None else float(threshold)

    def weights(self, round: Round, *, seed: int) -> Weights:
        return [self._passes(group) for group in round.groups]

    def _passes(self, group: Group) -> list[float | None]:
        rewards = [float(r.reward) for r in group.responses]  # type: ignore[arg-type]
        best = [True] * len(rewards) if self.top_k is None else top_k_mask(rewards, self.top_k)
        above = [self.threshold is None or r > self.threshold for r in rewards]
        return [1.0 if b and a else None for b, a in zip(best, above, strict=True)]
