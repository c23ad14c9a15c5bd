"""Supervised fine-tuning: imitate every response."""

from __future__ import annotations

from lit_pref.objectives.families.supervised import SupervisedModule, Weights
from lit_pref.types import Round

__all__ = ["SFT"]


class SFT(SupervisedModule):
    r"""Maximum likelihood of every response.

    .. math:: -\frac{1}{Z}\sum_i \sum_t \log\pi(y_{i,t})

    Z is the number of tokens (arXiv 2203.02155) or of responses. On preference data it imitates
    chosen and rejected responses alike; ``pref_ft`` imitates the chosen ones.
    """

    paper = "2203.02155"

    def weights(self, round: Round, *, seed: int) -> Weights:
        return [[1.0] * len(group.responses) for group in round.groups]
