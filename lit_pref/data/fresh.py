"""Groups that are sampled from the policy as it is: the counterpart of ``StoredGroups``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_pref.data.refill import NoSignal, check_no_signal, refill
from lit_pref.data.streams import PromptStream
from lit_pref.functional.rng import Order
from lit_pref.types import Group, Prompt

if TYPE_CHECKING:
    from lit_pref.data.datamodule import RoundDataModule

__all__ = ["FreshGroups"]


class FreshGroups:
    """Which prompts a round samples from, and what becomes of groups without signal.

    Args:
        prompts: the training prompts.
        count: groups of a round.
        seed: of the order of prompts.
        order: of prompts; see ``PromptStream``.
        no_signal: ``keep`` groups whose rewards are all equal, or ``refill`` their places.
        limit: most further groups of a round; None: ``count``.
        responses: responses to each prompt.

    Raises:
        Refusal: settings that cannot be.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        count: int,
        seed: int,
        order: Order,
        no_signal: NoSignal,
        limit: int | None,
        responses: int,
    ) -> None:
        self.stream = PromptStream(prompts=prompts, seed=seed, order=order)
        self.count, self.no_signal = count, no_signal
        self.limit = count if limit is None else limit
        check_no_signal(no_signal, self.limit, responses)

    def of_round(self, data: RoundDataModule, index: int) -> list[Group]:
        """The groups of round ``index``, sampled and scored; what was refilled is counted."""
        version = data.version(index)

        def more(wave: int, start: int, count: int) -> list[Group]:
            prompts = self.stream.refill(index, self.limit, start, count)
            key = ("refill", index, wave)
            return data.sample(prompts, key, index=index, version=version, source="onpolicy")

        prompts, key = self.stream.round(index, self.count), ("sample", index)
        groups = data.sample(prompts, key, index=index, version=version, source="onpolicy")
        if self.no_signal == "refill":
            groups = list(groups)
            data.round_counts.update(refill(groups, limit=self.limit, more=more))
        return groups
