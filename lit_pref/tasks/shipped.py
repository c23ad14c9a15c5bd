"""Tasks on real text that come with prompts and a true reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lit_pref.tasks.base import Task
from lit_pref.tasks.text import TextTask
from lit_pref.types import Group, Prompt, Refusal, RewardSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ShippedText"]

_FILES = Path(__file__).parent / "files"


class ShippedText(Task):
    """A text task whose prompts are shipped and whose success is defined by a reward.

    Its offline data are pairs of a file, or ``offline_prompts`` groups that are sampled once from
    the initial policy and scored by the reward.

    Args:
        tokenizer: the model's tokenizer.
        name: of the task.
        file: name of the shipped file of prompts.
        reward: the true reward.
        offline_prompts: groups sampled once as offline data, where no ``pairs`` are given.
        eos_ids: see ``TextTask``, as are all others.
        context_length: most tokens the model can see at once.
        prompts: the user's own prompts instead of the shipped ones.
        pairs: file of preference pairs.
        validation: file of prompts to validate on.
        columns: the user's column names by ours.
        max_dropped: largest share of a file's rows that may be unusable.
        max_new_tokens: most tokens of a sampled response.
        max_prompt_tokens: most tokens of a prompt.
        max_response_tokens: most tokens of a given response.
        long_prompts: ``drop`` or ``keep_end``.
        long_responses: ``cut`` or ``drop``.
        validation_prompts: prompts held out when no validation file is named.
        cache_dir: keeps the tokenised pairs.

    Raises:
        Refusal: see ``TextTask``.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        file: str,
        reward: RewardSource,
        eos_ids: Sequence[int],
        context_length: int,
        offline_prompts: int = 0,
        prompts: str | None = None,
        pairs: str | None = None,
        validation: str | None = None,
        columns: Mapping[str, str] | None = None,
        max_dropped: float = 0.2,
        max_new_tokens: int = 64,
        max_prompt_tokens: int | None = None,
        max_response_tokens: int | None = None,
        long_prompts: Literal["drop", "keep_end"] = "drop",
        long_responses: Literal["cut", "drop"] = "cut",
        validation_prompts: int = 16,
        cache_dir: str | None = None,
    ) -> None:
        if not isinstance(offline_prompts, int) or offline_prompts < 0:
            raise Refusal(f"task.offline_prompts must be a whole number, got {offline_prompts!r}")
        if prompts is None and not (_FILES / file).exists():
            known = ", ".join(sorted(f.name for f in _FILES.glob("*.jsonl")))
            raise Refusal(f"task.file={file}: there is no such shipped file; there are {known}")
        self.name = name
        self.offline_prompts = 0 if pairs else offline_prompts
        self._reward = reward
        self._shipped = None if prompts is not None else file
        self.text = TextTask(
            tokenizer,
            eos_ids=eos_ids,
            context_length=context_length,
            prompts=str(_FILES / file) if prompts is None else prompts,
            pairs=pairs,
            validation=validation,
            columns=columns,
            max_dropped=max_dropped,
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
            max_response_tokens=max_response_tokens,
            long_prompts=long_prompts,
            long_responses=long_responses,
            validation_prompts=validation_prompts,
            cache_dir=cache_dir if pairs else None,  # the shipped prompts are few
        )
        self.eos_ids = self.text.eos_ids
        self.max_new_tokens = self.text.max_new_tokens
        self.max_prompt_tokens = self.text.max_prompt_tokens

    def check(self) -> None:
        """Read, validate and tokenise all files, once.

        Raises:
            Refusal: a file is not what it should be.
        """
        self.text.check()
        if self._shipped is not None:  # no file of a run names a place of this machine
            for prompt in self.text.all_prompts():
                prompt.file = f"lit_pref/tasks/files/{self._shipped}"

    def prompts(self) -> list[Prompt]:
        """Training prompts, in the order of their file."""
        self.check()
        return self.text.prompts()

    def validation(self) -> list[Prompt]:
        """Validation prompts."""
        self.check()
        return self.text.validation()

    def all_prompts(self) -> list[Prompt]:
        """Every usable row of the prompt file, those held out included."""
        self.check()
        return self.text.all_prompts()

    def offline(self) -> Sequence[Group] | None:  # type: ignore[override]
        """The pairs of ``task.pairs``; None where the data is sampled."""
        return self.text.offline()

    def counts(self) -> dict[str, float]:
        """What became of the rows of its files."""
        return self.text.counts()

    def decode(self, ids: list[int]) -> str:
        """Text of a response without special tokens."""
        return self.text.decode(ids)

    def true_reward(self) -> RewardSource:
        """The reward that defines success."""
        return self._reward
