"""The user's own text: prompts to sample from, stored responses, prompts to validate on."""

from __future__ import annotations

import heapq
import logging
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lit_pref.formats import (
    Drops,
    GroupSequence,
    TextEncoder,
    check_columns,
    load_groups,
    load_prompts,
    prompt_key,
)
from lit_pref.tasks.base import Task
from lit_pref.types import Prompt, Refusal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["SHIPPED_PROMPTS", "TextTask", "split_validation"]

log = logging.getLogger(__name__)

SHIPPED_PROMPTS = Path(__file__).parent / "files" / "prompts.jsonl"
_SHIPPED_NAME = "lit_pref/tasks/files/prompts.jsonl"

# Prompt ids are lines plus one of these, so that no two files of a task share an id.
_PROMPTS_ID, _PAIRS_ID, _VALIDATION_ID = 0, 500_000_000, 1_000_000_000

_CHANGES = {
    "prompt cut": "data/cut_prompts",
    "response cut": "data/cut_responses",
    "response without an end": "data/unended_responses",
    "prompt repeated in tokenised responses removed": "data/repeated_prompts",
}


class TextTask(Task):
    """A task made of the user's files.

    Nothing is read before ``check`` (or the first use), which reads and tokenises all of them.

    Args:
        tokenizer: the model's tokenizer.
        eos_ids: tokens at which the model's generation stops.
        context_length: most tokens the model can see at once.
        prompts: file of prompts to sample from; the shipped prompts by default.
        pairs: file of stored responses: preference pairs, rankings, scored or labelled
            responses; none by default.
        validation: file of prompts to validate on; by default some of ``prompts`` are held
            out, and stored responses to one of these prompts are held out with them.
        columns: the user's column names by ours, for all files named here.
        max_dropped: largest share of a file's rows that may be unusable.
        max_new_tokens: most tokens of a sampled response.
        max_prompt_tokens: most tokens of a prompt; by default the context less
            ``max_new_tokens``.
        max_response_tokens: most tokens of a given response; by default whatever the context
            leaves.
        long_prompts: ``drop`` or ``keep_end``; see ``TextEncoder``.
        long_responses: ``cut`` or ``drop``; see ``TextEncoder``.
        validation_prompts: prompts held out when no validation file is named, at most half.
        cache_dir: folder where tokenised files are kept and mapped from; None: in memory alone.

    Raises:
        Refusal: numbers that leave no room for a prompt or a response.
    """

    name = "text"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        eos_ids: Sequence[int],
        context_length: int,
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
        room = context_length - max_new_tokens
        if max_new_tokens < 1 or room < 1:
            raise Refusal(
                f"max_new_tokens is {max_new_tokens}. Expected 1 to {context_length - 1}: the "
                f"model's context holds {context_length} tokens, and a prompt needs some of them."
            )
        if max_prompt_tokens is None:
            max_prompt_tokens = room
        if max_prompt_tokens > room:
            raise Refusal(
                f"max_prompt_tokens {max_prompt_tokens} and max_new_tokens {max_new_tokens} "
                f"exceed the model's context of {context_length} tokens. Expected at most "
                f"{room} for prompts; lower one of them."
            )
        if validation_prompts < 1:
            raise Refusal(f"validation_prompts is {validation_prompts}. Expected at least 1.")
        self.encoder = TextEncoder(
            tokenizer,
            eos_ids=eos_ids,
            context_length=context_length,
            max_prompt_tokens=max_prompt_tokens,
            max_response_tokens=max_response_tokens,
            long_prompts=long_prompts,
            long_responses=long_responses,
        )
        self.eos_ids = self.encoder.eos_ids
        self.max_new_tokens = max_new_tokens
        self.max_prompt_tokens = max_prompt_tokens
        self.drops: dict[str, Drops] = {}
        self._held_out = 0
        self._files = {"prompts": prompts, "pairs": pairs, "validation": validation}
        self._columns = check_columns(columns)
        self._max_dropped = max_dropped
        self._validation_prompts = validation_prompts
        self._train: list[Prompt] | None = None
        self._every: list[Prompt] = []
        self._validation: list[Prompt] = []
        self._pairs: GroupSequence | None = None
        self._cache_dir = None if cache_dir is None else Path(cache_dir).expanduser() / "data"

    def check(self) -> None:
        """Read, validate and tokenise all files, once.

        Raises:
            Refusal: a file is not what it should be, or too much of it is unusable.
        """
        if self._train is not None:
            return
        train = every = self._read_prompts("prompts", _PROMPTS_ID)
        pairs = self._read_pairs()
        if self._files["validation"] is not None:
            validation = self._read_prompts("validation", _VALIDATION_ID)
            self._warn_of_overlap(validation, train, pairs)
        else:
            train, validation = split_validation(train, self._validation_prompts)
            if pairs is not None:
                pairs = self._hold_out(pairs, validation)
        self._train, self._validation, self._pairs = train, validation, pairs
        self._every = every

    def prompts(self) -> list[Prompt]:
        """Training prompts, in the order of their file."""
        self.check()
        return list(self._train or [])

    def validation(self) -> list[Prompt]:
        """Validation prompts."""
        self.check()
        return list(self._validation)

    def all_prompts(self) -> list[Prompt]:
        """Every usable row of the prompt file in its order, those held out included."""
        self.check()
        return list(self._every)

    def offline(self) -> GroupSequence | None:
        """The stored responses, decoded when they are asked for; None without such a file."""
        self.check()
        return self._pairs

    def counts(self) -> dict[str, float]:
        """Rows that are left out, by file, and what is used but not as it was written."""
        self.check()
        files = self.drops.values()
        out = {f"data/dropped_{which}": drops.dropped for which, drops in self.drops.items()}
        out |= {name: sum(d.changes.get(c, 0) for d in files) for c, name in _CHANGES.items()}
        if "pairs" in self.drops:
            out["data/pairs_held_out"] = self._held_out
        return {name: float(count) for name, count in out.items()}

    def decode(self, ids: list[int]) -> str:
        """Text of a response without special tokens."""
        return self.encoder.decode(ids)

    # ------------------------------------------------------------------ inside

    def _read_prompts(self, which: str, first_id: int) -> list[Prompt]:
        path = self._files[which]
        shipped = path is None
        loaded = load_prompts(
            SHIPPED_PROMPTS if path is None else path,
            encoder=self.encoder,
            columns={} if shipped else self._columns,  # the mapping describes the user's files
            max_dropped=self._max_dropped,
            first_id=first_id,
            name=_SHIPPED_NAME if shipped else None,
            cache_dir=None if shipped else self._cache_dir,
        )
        self.drops[which] = loaded.drops
        return list(loaded.items)

    def _read_pairs(self) -> GroupSequence | None:
        path = self._files["pairs"]
        if path is None:
            return None
        loaded = load_groups(
            path,
            encoder=self.encoder,
            columns=self._columns,
            max_dropped=self._max_dropped,
            first_id=_PAIRS_ID,
            cache_dir=self._cache_dir,
        )
        self.drops["pairs"] = loaded.drops
        return loaded.items

    def _hold_out(self, pairs: GroupSequence, validation: list[Prompt]) -> GroupSequence:
        held = {prompt_key(p.text) for p in validation}
        kept = array("q", (n for n, key in enumerate(pairs.keys()) if key not in held))
        if not kept:
            raise Refusal(
                f"All {len(pairs)} pairs of {self._files['pairs']} have a prompt that is held out "
                "for validation. Expected pairs to train on; name a file of other prompts with "
                "task.validation."
            )
        self._held_out = len(pairs) - len(kept)
        if not self._held_out:
            return pairs
        log.warning(
            "%s: %d of %d pairs are left out because their prompt is held out for validation; "
            "name a file of other prompts with task.validation to keep them.",
            self._files["pairs"],
            self._held_out,
            len(pairs),
        )
        return pairs.select(kept)

    def _warn_of_overlap(
        self, validation: list[Prompt], train: list[Prompt], pairs: GroupSequence | None
    ) -> None:
        asked = Counter(prompt_key(p.text) for p in validation)
        known = {prompt_key(p.text) for p in train} & set(asked)
        if pairs is not None:
            known |= {key for key in pairs.keys() if key in asked}
        shared = sum(asked[key] for key in known)
        if shared:
            log.warning(
                "%s: %d of %d validation prompts are also trained on.",
                self._files["validation"],
                shared,
                len(validation),
            )


def split_validation(prompts: list[Prompt], count: int) -> tuple[list[Prompt], list[Prompt]]:
    """Split prompts into training and validation prompts.

    The split depends on nothing but the texts: they are ordered by a hash and the last ``count``
    are held out, with every copy of them. At most half of the distinct prompts are held out.

    Args:
        prompts: the prompts.
        count: distinct prompts to hold out.

    Returns:
        Training prompts in their order, and one prompt for each text held out, in their order.
    """
    first: dict[bytes, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt_key(prompt.text), prompt)
    if len(first) == 1:
        log.warning("There is one prompt alone: it is trained on and validated on.")
        return prompts, prompts[:1]
    most = len(first) // 2
    if count > most:
        log.warning("%d prompts are held out for validation instead of %d.", most, count)
    held = set(heapq.nlargest(min(count, most), first))
    train = [p for p in prompts if prompt_key(p.text) not in held]
    return train, [p for key, p in first.items() if key in held]
