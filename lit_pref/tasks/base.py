"""What a task is: prompts, and whatever else there is to learn from or to measure with."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from torch import nn

from lit_pref.types import Group, Prompt, RewardSource

__all__ = ["Task"]


class Task(abc.ABC):
    """What is to be learned.

    Attributes:
        name: short name, also part of run names.
        eos_ids: tokens at which a response ends; empty where responses have a fixed length.
        max_new_tokens: most tokens of a sampled response.
        max_prompt_tokens: most tokens of a prompt; None where all prompts are alike.
        offline_prompts: groups that the data side samples from the initial policy as offline
            data; 0 for a task that brings its own or has none.
    """

    name: str
    eos_ids: tuple[int, ...] = ()
    max_new_tokens: int
    max_prompt_tokens: int | None = None
    offline_prompts: int = 0

    @abc.abstractmethod
    def prompts(self) -> list[Prompt]:
        """Training prompts."""

    @abc.abstractmethod
    def validation(self) -> list[Prompt]:
        """Prompts that are measured and never trained on."""

    def test(self) -> list[Prompt]:
        """Prompts of the final measurement; the validation prompts unless the task has others."""
        return self.validation()

    def all_prompts(self) -> list[Prompt]:
        """Training and validation prompts, each once, by id: what is responded to on demand."""
        every = {p.id: p for p in [*self.prompts(), *self.validation()]}
        return [every[i] for i in sorted(every)]

    @abc.abstractmethod
    def decode(self, ids: list[int]) -> str:
        """Text of a response without special tokens."""

    def check(self) -> None:  # noqa: B027  (most tasks have nothing to read)
        """Read and validate everything the user named; runs before any weight is loaded.

        Raises:
            Refusal: something cannot be used.
        """

    def offline(self) -> Sequence[Group] | None:
        """Stored preference data (rank 0 is chosen, 1 rejected), None if there is none.

        It may be too large for memory: take what is needed by index or slice.
        """
        return None

    def counts(self) -> dict[str, float]:
        """What became of the rows of files, by the name it is logged under with every round."""
        return {}

    def true_reward(self) -> RewardSource | None:
        """The reward that defines success, where the task knows it."""
        return None

    def initialise(self, model: nn.Module) -> None:  # noqa: B027  (most policies come trained)
        """Bring a new policy to the task's initial policy."""

    def fingerprint(self) -> str:
        """Stands for everything of the task that the initial policy depends on."""
        return self.name
