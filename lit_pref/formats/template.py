"""What a model's chat template does to messages, and texts that it has laid out already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_pref.types import Messages, Refusal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChatTemplate"]


class ChatTemplate:
    """The chat template of a tokenizer, if it has one.

    Args:
        tokenizer: the model's tokenizer.

    Attributes:
        present: there is a template.
        header: the text after which an answer begins, such as ``<|im_start|>assistant`` and a
            line end; empty where there is none.
        marked: the header has a control token, so that a text laid out by the template can be
            told from one that only looks like it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.present = tokenizer.chat_template is not None
        self.header = self._header()
        self.marked = any(t and t in self.header for t in tokenizer.all_special_tokens)

    def ids(self, messages: Messages, *, answer: bool) -> list[int]:
        """Token ids of messages, with the header of an answer or without.

        Raises:
            Refusal: there is no template, or it rejects the messages.
        """
        self.require()
        try:
            # return_dict is named because its default changed between transformers 4 and 5.
            return list(
                self.tokenizer.apply_chat_template(
                    messages, add_generation_prompt=answer, tokenize=True, return_dict=False
                )
            )
        except Exception as error:  # a template is a program of the model's author
            roles = ", ".join(m["role"] for m in messages[:8])
            raise Refusal(
                f"the model's chat template does not accept messages with the roles {roles} "
                f"({error}). Expected an order of roles that it knows; change the messages."
            ) from error

    def require(self) -> None:
        """Refuse messages where there is no template."""
        if not self.present:
            raise Refusal(
                "chat messages were given, but the model's tokenizer has no chat template. "
                "Use a chat (instruct) model, or write the prompt and the responses as strings."
            )

    def completed(self, text: str) -> str | None:
        """A prompt that the template has laid out already, its last line end restored.

        Returns:
            The text up to where the answer begins; None for any other text.
        """
        if not self.marked:
            return None
        header = self.header.rstrip()
        body = text.rstrip()
        return body[: len(body) - len(header)] + self.header if body.endswith(header) else None

    def after_answer(self) -> list[int]:
        """What the template writes from an assistant's text on; empty where it cannot be asked."""
        if not self.present:
            return []
        question = {"role": "user", "content": "a"}
        answer = {"role": "assistant", "content": "b"}
        try:
            prompt = self.ids([question], answer=True)
            whole = self.ids([question, answer], answer=False)
        except Refusal:
            return []
        same = 0
        while same < min(len(prompt), len(whole)) and prompt[same] == whole[same]:
            same += 1
        return whole[same:]

    def _header(self) -> str:
        if not self.present:
            return ""
        question = [{"role": "user", "content": "a"}]
        try:
            without, with_header = (
                str(
                    self.tokenizer.apply_chat_template(
                        question, add_generation_prompt=answer, tokenize=False
                    )
                )
                for answer in (False, True)
            )
        except Exception:  # the template will say so when it is used
            return ""
        return with_header[len(without) :] if with_header.startswith(without) else ""
