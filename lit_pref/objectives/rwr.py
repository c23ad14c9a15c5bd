"""Reward-weighted regression."""

from __future__ import annotations

import torch
from typing_extensions import Unpack

from lit_pref.functional.supervised import Normalise, exp_weights, normalise_rewards
from lit_pref.objectives.checks import choice, positive
from lit_pref.objectives.families.supervised import SupervisedArgs, SupervisedModule, Weights
from lit_pref.types import Needs, Policy, Round

__all__ = ["RWR"]


class RWR(SupervisedModule):
    r"""Likelihood weighted by the exponential of the reward.

    .. math:: -\frac{1}{Z}\sum_i \min(e^{r_i/\tau}, c) \log\pi(y_i)

    (Peters and Schaal, 2007; in this form arXiv 2404.14367, section 3.)

    Args:
        policy: the model to train.
        temperature: divides the reward, larger than 0.
        normalise: ``none``: rewards as they are; ``group`` or ``round``: their z-score among the
            responses of the prompt or of the round (population deviation).
        clip: largest weight, None for none.
        **shared: see ``SupervisedModule``.

    Raises:
        Refusal: an argument out of range.
    """

    needs = Needs(rewards=True)
    paper = "2404.14367"

    def __init__(
        self,
        policy: Policy,
        *,
        temperature: float = 1.0,
        normalise: Normalise = "none",
        clip: float | None = 20.0,
        **shared: Unpack[SupervisedArgs],
    ) -> None:
        choice("normalise", normalise, ("none", "group", "round"))
        super().__init__(policy, **shared)
        self.temperature = positive("temperature", temperature, usual=1.0)
        self.normalise: Normalise = normalise
        self.clip = None if clip is None else positive("clip", clip, usual=20.0)

    def weights(self, round: Round, *, seed: int) -> Weights:
        sizes = [len(group.responses) for group in round.groups]
        rewards = torch.tensor(
            [float(r.reward) for g in round.groups for r in g.responses],  # type: ignore[arg-type]
            dtype=torch.float64,
        )
        owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        often = torch.tensor([g.weight for g in round.groups])[owner]
        scaled = normalise_rewards(rewards, owner, len(sizes), how=self.normalise, weight=often)
        found = exp_weights(scaled, temperature=self.temperature, clip=self.clip)
        return [row.tolist() for row in found.split(sizes)]
