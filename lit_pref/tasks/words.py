"""What the length tasks and gold_reward share: prompts, the corpus, pairs from a file."""

from __future__ import annotations

import json
import logging
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_pref.functional.words import (
    END,
    LONGEST,
    PROMPT_TOKENS,
    SPREAD,
    TYPICAL,
    VOCABULARY,
    prompt_ids,
    response_ids,
    text_of,
)
from lit_pref.tasks.base import Task
from lit_pref.types import Group, Prompt, Refusal, Response, RewardSource

__all__ = ["WordStart", "WordTask"]

log = logging.getLogger(__name__)

# Prompts are numbers. Tasks, their validation and the corpus of the start share none.
_CORPUS, _VALIDATION = 1_000_000, 2_000_000


class WordTask(Task):
    """A task in the language of ``lit_pref.functional.words`` with a true reward.

    Prompts are the same for every seed. Preference pairs come from a file of sampled groups
    (``samples.jsonl`` as ``lit-pref generate`` writes it); each group's first two responses are
    ranked by the true reward, and carry it. A tie is no preference: such groups are left out,
    and counted.

    Args:
        name: of the task.
        tokenizer: the model's; its vocabulary must be that of the language.
        pairs: the file; None: the task has no offline data.
        train_prompts: number of training prompts; the pairs have the same prompts.
        validation_prompts: number of validation prompts.
        max_new_tokens: most tokens of a sampled response.

    Raises:
        Refusal: a count out of range, or a model that speaks another language.
    """

    eos_ids = (END,)
    max_prompt_tokens = PROMPT_TOKENS

    def __init__(
        self,
        *,
        name: str,
        tokenizer: Any,
        pairs: str | None = None,
        train_prompts: int = 3000,
        validation_prompts: int = 128,
        max_new_tokens: int = LONGEST,
    ) -> None:
        check_vocabulary(name, tokenizer)
        check_count("task.train_prompts", train_prompts)
        check_count("task.validation_prompts", validation_prompts)
        self.name = name
        self.max_new_tokens = max_new_tokens
        self.train_prompts, self.validation_prompts = train_prompts, validation_prompts
        self._file = pairs
        self._pairs: list[Group] | None = None
        self._dropped = 0

    @abstractmethod
    def true_reward(self) -> RewardSource:
        """What defines success, and orders the pairs."""

    def edited(self, group: Group) -> Group:
        """A sampled group as it enters the preference data; unchanged unless a task edits it."""
        return group

    def prompts(self) -> list[Prompt]:
        """Training prompts, the same for every seed."""
        return word_prompts(0, self.train_prompts)

    def validation(self) -> list[Prompt]:
        """Validation prompts, the same for every seed."""
        return word_prompts(_VALIDATION, self.validation_prompts)

    def decode(self, ids: list[int]) -> str:
        """Words with spaces between."""
        return text_of(ids)

    def check(self) -> None:
        """Read the pairs, once.

        Raises:
            Refusal: the file cannot be read, or holds no pair of this task's prompts.
        """
        if self._file is not None and self._pairs is None:
            self._pairs = self._ranked(read_groups("task.pairs", self._file))

    def offline(self) -> list[Group] | None:
        """Preference pairs: the response of rank 0 has the larger true reward."""
        self.check()
        return None if self._pairs is None else list(self._pairs)

    def counts(self) -> dict[str, float]:
        """Groups of the file of pairs that are left out."""
        self.check()
        return {} if self._pairs is None else {"data/dropped_pairs": float(self._dropped)}

    def _ranked(self, groups: list[Group]) -> list[Group]:
        mine = [g for g in groups if g.prompt.id < self.train_prompts and len(g.responses) > 1]
        if not mine:
            raise Refusal(
                f"task.pairs={self._file}: expected groups of two or more responses to the "
                f"prompts of task={self.name}; leave task.pairs out, and they are made"
            )
        edited = [self.edited(g) for g in mine]
        for group in edited:
            group.responses = group.responses[:2]
        reward = self.true_reward()
        scores = reward.score(edited)
        pairs = []
        for group, first, second in zip(edited, scores[::2], scores[1::2], strict=True):
            if first == second:
                continue
            for response, own, other in zip(
                group.responses, (first, second), (second, first), strict=True
            ):
                response.reward, response.rank = own, int(own < other)
            group.source, group.reward_source = "offline", f"{reward.name}@{reward.version}"
            pairs.append(group)
        if len(pairs) < len(mine):
            log.info("%s: %d of %d pairs are ties, left out", self.name, len(mine) - len(pairs),
                     len(mine))  # fmt: skip
        trained = sum(g.prompt.id < _VALIDATION for g in groups)  # the others are no loss
        if len(mine) < trained:
            log.info("%s: %d of %d groups are of other prompts or of one response, left out",
                     self.name, trained - len(mine), trained)  # fmt: skip
        self._dropped = trained - len(pairs)
        return pairs


class WordStart(Task):
    """The corpus that the policies of these tasks start from: ``objective=sft data=offline``.

    One response to each prompt, whose length follows a log-normal cut into whole tokens; see
    ``lit_pref.functional.words``. There is nothing to prefer, hence no reward.

    Args:
        tokenizer: the model's; its vocabulary must be that of the language.
        train_prompts: responses of the corpus.
        validation_prompts: prompts that are only measured.
        mode: the likeliest length in tokens.
        sigma: standard deviation of the logarithm of the length.
        max_new_tokens: most tokens of a sampled response.

    Raises:
        Refusal: a number out of range, or a model that speaks another language.
    """

    name = "word_start"
    eos_ids = (END,)
    max_prompt_tokens = PROMPT_TOKENS

    def __init__(
        self,
        *,
        tokenizer: Any,
        train_prompts: int = 8192,
        validation_prompts: int = 128,
        mode: float = TYPICAL,
        sigma: float = SPREAD,
        max_new_tokens: int = LONGEST,
    ) -> None:
        check_vocabulary(self.name, tokenizer)
        check_count("task.train_prompts", train_prompts)
        check_count("task.validation_prompts", validation_prompts)
        self.max_new_tokens = max_new_tokens
        self.train_prompts, self.validation_prompts = train_prompts, validation_prompts
        self.mode, self.sigma = mode, sigma

    def prompts(self) -> list[Prompt]:
        """Prompts of the corpus."""
        return word_prompts(_CORPUS, self.train_prompts)

    def validation(self) -> list[Prompt]:
        """The validation prompts of the tasks that start from here."""
        return word_prompts(_VALIDATION, self.validation_prompts)

    def decode(self, ids: list[int]) -> str:
        """Words with spaces between."""
        return text_of(ids)

    def offline(self) -> list[Group]:
        """The corpus: one response to each prompt."""
        prompts = self.prompts()
        answers = response_ids([p.id for p in prompts], mode=self.mode, sigma=self.sigma)
        return [
            Group(prompt=p, responses=[Response(ids=ids, text=text_of(ids))])
            for p, ids in zip(prompts, answers, strict=True)
        ]


def word_prompts(first: int, count: int) -> list[Prompt]:
    """Prompts of consecutive numbers, which are their ids."""
    numbered = [(n, prompt_ids(n)) for n in range(first, first + count)]
    return [Prompt(id=n, text=text_of(ids), ids=ids) for n, ids in numbered]


def check_vocabulary(task: str, tokenizer: Any) -> None:
    """Refuse a model whose tokens are not those of the language."""
    table = {} if tokenizer is None else tokenizer.get_vocab()
    if table != {word: i for i, word in enumerate(VOCABULARY)}:
        raise Refusal(
            f"task={task} is written in {len(VOCABULARY)} words of its own, and the model has "
            f"{'no tokenizer' if tokenizer is None else f'{len(table)} other tokens'}; use "
            "model=word_nano (model.path=FOLDER for trained weights)"
        )


def check_count(key: str, value: int) -> None:
    """Refuse a number of prompts that is none."""
    if not isinstance(value, int) or not 1 <= value <= _CORPUS:
        raise Refusal(f"{key} must be a whole number from 1 to {_CORPUS}, got {value!r}")


def read_groups(key: str, file: str) -> list[Group]:
    """Sampled groups of a file; ``key`` names it in refusals."""
    path = Path(file).expanduser()
    try:
        with path.open(encoding="utf-8") as lines:
            return [Group.from_state(json.loads(line)) for line in lines if line.strip()]
    except OSError as error:
        raise Refusal(
            f"{key}={file} cannot be read ({error}); give a samples.jsonl that lit-pref "
            f"generate wrote, or leave {key} out, and it is made"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise Refusal(
            f"{key}={file} is not a file of sampled groups ({type(error).__name__}: {error});"
            " give a samples.jsonl that lit-pref generate wrote"
        ) from error


def flat_responses(groups: Sequence[Group]) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, response ids) of every response, groups in order, responses in order."""
    return [(g.prompt.ids, r.ids) for g in groups for r in g.responses]
