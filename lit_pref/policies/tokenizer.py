"""A tokenizer of bytes, made on the spot: no file, no download, no unknown token."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

__all__ = ["CHATML", "byte_tokenizer"]

PAD, TURN_START, TURN_END = "<|pad|>", "<|im_start|>", "<|im_end|>"

# ChatML without a default system message.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_tokenizer(*, context_length: int | None = None) -> PreTrainedTokenizerBase:
    """One token per UTF-8 byte (token id = byte value), then pad, turn start and turn end.

    Any unicode text survives ``decode(encode(text))``. The end-of-sequence token is the end of a
    turn, ``<|im_end|>``. Plain text gets no token before or after it; chat messages are laid out
    by a ChatML template.

    Args:
        context_length: ``model_max_length`` of the tokenizer, in tokens; no limit by default.

    Returns:
        A fast tokenizer with 259 tokens.

    Example:
        >>> byte_tokenizer()("ab")["input_ids"]
        [97, 98]
    """
    vocabulary = {symbol: byte for byte, symbol in enumerate(_byte_symbols())}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in (PAD, TURN_START, TURN_END)]
    )
    limit = {} if context_length is None else {"model_max_length": context_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=TURN_END,
        additional_special_tokens=[TURN_START],
        clean_up_tokenization_spaces=False,
        chat_template=CHATML,
        **limit,
    )


def _byte_symbols() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte, in byte order.

    Printable latin-1 bytes stand for themselves, the others are moved up from 256 in order.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable}
    symbols |= {byte: chr(256 + n) for n, byte in enumerate(moved)}
    return [symbols[byte] for byte in range(256)]
