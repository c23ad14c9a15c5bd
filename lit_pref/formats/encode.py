"""From text to token ids and back, through a Hugging Face tokenizer.

A prompt is tokenised once and a response on its own, so no token can merge across the border.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_pref.formats.drops import Unusable
from lit_pref.types import Messages, Refusal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TextEncoder"]


class TextEncoder:
    """Tokenises prompts and responses under one explicit length policy.

    A prompt longer than ``max_prompt_tokens`` is unusable and never cut. A response longer than
    ``max_response_tokens``, or than the context leaves room for, is cut and then carries no
    end-of-sequence token.

    Args:
        tokenizer: the model's tokenizer; its chat template decides how prompts are wrapped.
        eos_ids: the tokens at which the model's own generation stops.
        context_length: most tokens the model can see at once.
        max_prompt_tokens: most tokens of a prompt, template included; by default all but one of
            the context.
        max_response_tokens: most tokens of a response, the end included; by default whatever the
            context leaves.

    Raises:
        Refusal: limits that leave no room, or no end-of-sequence token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        eos_ids: Sequence[int],
        context_length: int,
        max_prompt_tokens: int | None = None,
        max_response_tokens: int | None = None,
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
        self.tokenizer = tokenizer
        self.eos_ids = tuple(eos_ids)
        self.context_length = context_length
        self.max_prompt_tokens = max_prompt_tokens
        self.max_response_tokens = max_response_tokens
        self.has_template = tokenizer.chat_template is not None
        self.adds_bos = self._adds_bos()
        self.eos_id = self._end_of_turn()

    def encode_prompt(self, text: str | Messages) -> list[int]:
        """Token ids of a prompt, up to where the response begins.

        With a chat template a string is one user message; without one it is taken as it is.
        There is at most one beginning-of-sequence token.

        Raises:
            Refusal: messages without a chat template, or a template that rejects them.
            Unusable: an empty or too long prompt.
        """
        last = text if isinstance(text, str) else (text[-1]["content"] if text else "")
        if not last.strip():
            raise Unusable("empty prompt")
        if isinstance(text, str) and not self.has_template:
            ids = self._plain(text)
            if self.adds_bos:
                ids = [self.tokenizer.bos_token_id, *ids]
        else:
            messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
            ids = self._templated(messages, generation_prompt=True)
        ids = self._one_bos(ids)
        if not ids:
            raise Unusable("empty prompt")
        if len(ids) > self.max_prompt_tokens:
            raise Unusable(f"prompt longer than {self.max_prompt_tokens} tokens")
        return ids

    def encode_response(self, text: str | Messages, *, prompt_length: int = 0) -> list[int]:
        """Token ids of a response with one end-of-sequence token, or cut without one.

        Args:
            text: the response, as a string or as one assistant message.
            prompt_length: tokens of its prompt, which take room in the context.

        Raises:
            Refusal: a message without a chat template.
            Unusable: an empty response, or one with an end-of-sequence token inside.
        """
        if not isinstance(text, str):
            self._require_template()
            text = text[-1]["content"] if text else ""
        ids = self._plain(text) if text.strip() else []
        while ids and ids[-1] in self.eos_ids:  # files that spell the end out
            ids.pop()
        if not ids or not self.decode(ids).strip():
            raise Unusable("empty response")
        if any(i in self.eos_ids for i in ids):
            raise Unusable("end-of-sequence token inside a response")
        ids.append(self.eos_id)
        room = self.context_length - prompt_length
        return ids[: min(room, self.max_response_tokens or room)]

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

    # ------------------------------------------------------------------ inside

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _templated(self, messages: Messages, *, generation_prompt: bool) -> list[int]:
        self._require_template()
        try:
            # return_dict is named because its default changed between transformers 4 and 5.
            ids = self.tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=generation_prompt,
                tokenize=True,
                return_dict=False,
            )
        except Exception as error:  # a template is a program of the model's author
            roles = ", ".join(m["role"] for m in messages[:8])
            raise Refusal(
                f"the model's chat template does not accept messages with the roles {roles} "
                f"({error}). Expected an order of roles that it knows; change the messages."
            ) from error
        return list(ids)

    def _require_template(self) -> None:
        if not self.has_template:
            raise Refusal(
                "chat messages were given, but the model's tokenizer has no chat template. "
                "Use a chat (instruct) model, or write the prompt and the responses as strings."
            )

    def _one_bos(self, ids: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        while bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        return ids

    def _adds_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and list(self.tokenizer("a")["input_ids"])[:1] == [bos]

    def _end_of_turn(self) -> int:
        """The end token that belongs after a response.

        Chat models name several: the template shows which of them ends an assistant's turn.
        """
        if self.has_template:
            question = {"role": "user", "content": "a"}
            answer = {"role": "assistant", "content": "b"}
            try:
                prompt = self._templated([question], generation_prompt=True)
                whole = self._templated([question, answer], generation_prompt=False)
            except Refusal:
                prompt, whole = [], []
            same = 0
            while same < min(len(prompt), len(whole)) and prompt[same] == whole[same]:
                same += 1
            for token in whole[same:]:
                if token in self.eos_ids:
                    return token
        own = self.tokenizer.eos_token_id
        return own if own in self.eos_ids else self.eos_ids[0]
