"""From text to token ids and back, through a Hugging Face tokenizer.

A prompt is tokenised once and a response on its own, so no token can merge across the border.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from lit_pref.formats.border import common_beginning
from lit_pref.formats.drops import Unusable
from lit_pref.formats.template import ChatTemplate
from lit_pref.types import Messages, Refusal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TextEncoder"]


class TextEncoder:
    """Tokenises prompts and responses under one explicit length policy.

    Args:
        tokenizer: the model's tokenizer; its chat template decides how prompts are wrapped.
        eos_ids: the tokens at which the model's own generation stops.
        context_length: most tokens the model can see at once.
        max_prompt_tokens: most tokens of a prompt, template included; by default all but one of
            the context.
        max_response_tokens: most tokens of a response, the end included; by default whatever the
            context leaves.
        long_prompts: a longer prompt is unusable (``drop``), or loses its beginning
            (``keep_end``): tokens after the BOS of a plain text, whole turns after the system
            message of a chat, whose last turn is never cut.
        long_responses: a longer response loses its end, and with it the end-of-sequence token
            (``cut``), or is unusable (``drop``).

    Raises:
        Refusal: limits that leave no room, an unknown policy, or no end-of-sequence token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        eos_ids: Sequence[int],
        context_length: int,
        max_prompt_tokens: int | None = None,
        max_response_tokens: int | None = None,
        long_prompts: Literal["drop", "keep_end"] = "drop",
        long_responses: Literal["cut", "drop"] = "cut",
    ) -> None:
        if not eos_ids:
            raise Refusal(
                "The model names no end-of-sequence token. Expected at least one id, so that "
                "responses can end; set eos_token_id in its generation config."
            )
        if max_prompt_tokens is None:
            max_prompt_tokens = context_length - 1
        if not 1 <= max_prompt_tokens < context_length:
            raise Refusal(
                f"max_prompt_tokens is {max_prompt_tokens}. Expected 1 to {context_length - 1}: "
                f"the context holds {context_length} tokens, and a response needs at least one."
            )
        if max_response_tokens is not None and max_response_tokens < 1:
            raise Refusal(f"max_response_tokens is {max_response_tokens}. Expected at least 1.")
        _check_choice("long_prompts", long_prompts, ("drop", "keep_end"))
        _check_choice("long_responses", long_responses, ("cut", "drop"))
        self.tokenizer = tokenizer
        self.eos_ids = tuple(eos_ids)
        self.context_length = context_length
        self.max_prompt_tokens = max_prompt_tokens
        self.max_response_tokens = max_response_tokens
        self.long_prompts = long_prompts
        self.long_responses = long_responses
        self.template = ChatTemplate(tokenizer)
        self.bos_id: int | None = tokenizer.bos_token_id
        self.adds_bos = self._adds_bos()
        self.eos_id = self._end_of_turn()
        self.vocabulary = len(tokenizer)
        self._ends = tuple(tokenizer.convert_ids_to_tokens(list(self.eos_ids)))
        # What calling a fast tokenizer ends in, without the third of the time that leads there.
        fast = getattr(tokenizer, "is_fast", False)
        plain = fast and not getattr(tokenizer, "split_special_tokens", False)
        self._backend = tokenizer.backend_tokenizer if plain else None  # type: ignore[attr-defined]
        self._control = _any_of(tokenizer.all_special_tokens)

    @property
    def has_template(self) -> bool:
        return self.template.present

    def options(self) -> dict[str, Any]:
        """Everything beside the tokenizer that decides what a text becomes."""
        return {
            "eos_ids": list(self.eos_ids),
            "context_length": self.context_length,
            "max_prompt_tokens": self.max_prompt_tokens,
            "max_response_tokens": self.max_response_tokens,
            "long_prompts": self.long_prompts,
            "long_responses": self.long_responses,
        }

    # ------------------------------------------------------------------ prompts

    def encode_prompt(self, text: str | Messages) -> list[int]:
        """Token ids of a prompt; see ``fit_prompt``."""
        return self.fit_prompt(text)[0]

    def fit_prompt(self, text: str | Messages) -> tuple[list[int], bool]:
        """Token ids of a prompt, up to where the response begins, and whether it was cut.

        With a chat template a string is one user message, unless it is laid out by that template
        already; without one it is taken as it is. There is at most one beginning-of-sequence
        token.

        Raises:
            Refusal: messages without a chat template, or a template that rejects them.
            Unusable: an empty or too long prompt, or a message with a control token inside.
        """
        last = text if isinstance(text, str) else (text[-1]["content"] if text else "")
        if not last.strip():
            raise Unusable("empty prompt")
        if isinstance(text, str):
            rendered = self.template.completed(text)
            if rendered is not None or not self.has_template:
                ids = self._plain(text if rendered is None else rendered)
                ids = [self.tokenizer.bos_token_id, *ids] if self.adds_bos else ids
                return self._fit_plain(self._one_bos(ids), cuttable=rendered is None)
            text = [{"role": "user", "content": text}]
        if any(self._control.search(m["content"]) for m in text):
            raise Unusable("control token inside a prompt")
        return self._fit_messages(text)

    def given_prompt(self, ids: list[int]) -> tuple[list[int], bool]:
        """A prompt that is tokenised already, and whether it was cut.

        Raises:
            Refusal: an id that the tokenizer does not have.
            Unusable: an empty or too long prompt.
        """
        self._check_ids(ids)
        return self._fit_plain(self._one_bos(ids), cuttable=True)

    def _fit_plain(self, ids: list[int], *, cuttable: bool) -> tuple[list[int], bool]:
        if not ids:
            raise Unusable("empty prompt")
        too_long = len(ids) - self.max_prompt_tokens
        if too_long <= 0:
            return ids, False
        if self.long_prompts == "drop" or not cuttable:
            raise self._too_long()
        kept = 1 if ids[0] == self.bos_id and self.max_prompt_tokens > 1 else 0
        return [*ids[:kept], *ids[kept + too_long :]], True

    def _fit_messages(self, messages: Messages) -> tuple[list[int], bool]:
        ids = self._templated(messages)
        if len(ids) <= self.max_prompt_tokens:
            return ids, False
        lead = 1 if messages[0]["role"] in ("system", "developer") else 0
        if self.long_prompts == "keep_end":
            for start in range(lead + 1, len(messages)):
                if messages[start]["role"] == "user":  # never begin with an answer
                    ids = self._templated([*messages[:lead], *messages[start:]])
                    if len(ids) <= self.max_prompt_tokens:
                        return ids, True
        raise self._too_long()

    def _too_long(self) -> Unusable:
        return Unusable(f"prompt longer than {self.max_prompt_tokens} tokens")

    # ------------------------------------------------------------------ responses

    def encode_response(self, text: str | Messages, *, prompt_length: int = 0) -> list[int]:
        """Token ids of a response with one end-of-sequence token, or cut without one.

        Args:
            text: the response, as a string or as one assistant message.
            prompt_length: tokens of its prompt, which take room in the context.

        Raises:
            Refusal: a message without a chat template.
            Unusable: an empty response, a too long one, one with a control token inside.
        """
        if not isinstance(text, str):
            self.template.require()
            text = text[-1]["content"] if text else ""
        if text.rstrip().endswith(self._ends):  # a line end after the end of a turn
            text = text.rstrip()
        ids = self._plain(text) if text.strip() else []
        return self._fit_response(ids, prompt_length, end=self.eos_id)

    def given_response(self, ids: list[int], *, prompt_length: int = 0) -> list[int]:
        """A response that is tokenised already; one without an end has been cut by somebody.

        Raises:
            Refusal: an id that the tokenizer does not have.
            Unusable: as for ``encode_response``.
        """
        self._check_ids(ids)
        padding = 0
        while padding < len(ids) and ids[-1 - padding] in self.eos_ids:
            padding += 1
        end = ids[-padding] if padding else None
        return self._fit_response(list(ids), prompt_length, end=end)

    def _fit_response(self, ids: list[int], prompt_length: int, *, end: int | None) -> list[int]:
        if ids and ids[0] == self.bos_id and ids[0] not in self.eos_ids:
            ids = ids[1:]  # files that spell the beginning out
        while ids and ids[-1] in self.eos_ids:  # or the end, perhaps as padding
            ids.pop()
        if not ids or not self.decode(ids).strip():
            raise Unusable("empty response")
        if any(i in self.eos_ids for i in ids):
            raise Unusable("end-of-sequence token inside a response")
        if self.bos_id in ids:
            raise Unusable("beginning-of-sequence token inside a response")
        if end is not None:
            ids.append(end)
        room = self.context_length - prompt_length
        room = min(room, self.max_response_tokens or room)
        if len(ids) > room and self.long_responses == "drop":
            raise Unusable(f"response longer than {room} tokens")
        return ids[:room]

    def finished(self, ids: Sequence[int]) -> bool:
        """Whether a response ended by itself."""
        return bool(ids) and ids[-1] in self.eos_ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens and without the end of the response."""
        ids = list(ids[:-1] if self.finished(ids) else ids)
        text = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)  # only a batch of ids gives a list
        return text

    def spell(self, ids: Sequence[int]) -> str:
        """Text with its special tokens."""
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token, for people; bytes of a broken character are shown as such."""
        return [self.tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids]  # type: ignore[misc]

    def split_common(self, chosen: str, rejected: str) -> tuple[str, str, str]:
        """The common beginning of two texts as the prompt, and the rest of each.

        No token of either text is split, and no turn of the model's own chat template.

        Raises:
            Unusable: there is no common beginning, or turns differ before the last answer.
        """
        return common_beginning(
            chosen,
            rejected,
            tokenize=self._plain,
            header=self.template.header if self.template.marked else "",
            control=self._control,
        )

    # ------------------------------------------------------------------ inside

    def _plain(self, text: str) -> list[int]:
        backend = self._backend
        if backend is not None and backend.truncation is None and backend.padding is None:
            return list(backend.encode(text, add_special_tokens=False).ids)
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _templated(self, messages: Messages) -> list[int]:
        return self._one_bos(self.template.ids(messages, answer=True))

    def _one_bos(self, ids: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        while bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        return ids

    def _check_ids(self, ids: Sequence[int]) -> None:
        wrong = next((i for i in ids if not 0 <= i < self.vocabulary), None)
        if wrong is not None:
            raise Refusal(
                f"the token id {str(wrong)[:20]} is not one of the tokenizer's "
                f"{self.vocabulary}. Expected "
                "rows that were tokenised for this model; tokenise them again, or give texts."
            )

    def _adds_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and list(self.tokenizer("a")["input_ids"])[:1] == [bos]

    def _end_of_turn(self) -> int:
        """The end token that belongs after a response.

        Chat models name several: the template shows which of them ends an assistant's turn.
        """
        for token in self.template.after_answer():
            if token in self.eos_ids:
                return token
        own = self.tokenizer.eos_token_id
        return own if own in self.eos_ids else self.eos_ids[0]


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise Refusal(f"{name} is {value!r}. Expected {' or '.join(choices)}.")


def _any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    """Matches any of these texts; nothing when there are none."""
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
