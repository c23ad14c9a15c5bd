"""The policy of the length tasks: a small GPT-2 on a vocabulary of sixty words."""

from __future__ import annotations

from dataclasses import replace

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lit_pref.functional.words import LONGEST, PROMPT_TOKENS, VOCABULARY
from lit_pref.policies.models import random_model
from lit_pref.policies.pretrained import hf
from lit_pref.policies.spec import ModelSpec
from lit_pref.types import Refusal

__all__ = ["word_nano", "word_tokenizer"]


def word_tokenizer(*, context_length: int | None = None) -> PreTrainedTokenizerBase:
    """A token per word of ``lit_pref.functional.words``; words are separated by spaces.

    Args:
        context_length: ``model_max_length`` of the tokenizer, in tokens; no limit by default.
    """
    table = {word: i for i, word in enumerate(VOCABULARY)}
    backend = Tokenizer(WordLevel(vocab=table, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    limit = {} if context_length is None else {"model_max_length": context_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        **limit,
    )


def word_nano(
    *,
    path: str | None = None,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    context_length: int = 56,
    seed: int = 0,
) -> ModelSpec:
    """A GPT-2 for the length tasks: 107,776 parameters with the defaults, no dropout.

    Args:
        path: a folder with its trained weights (``export/`` of a run), whose sizes are then
            taken; None makes random weights.
        layers: number of layers.
        width: of the hidden states, a multiple of ``heads``.
        heads: attention heads.
        context_length: most tokens of prompt and response together.
        seed: of the random weights.

    Raises:
        Refusal: sizes that do not fit together, or a folder that cannot be read.
    """
    if path is not None:
        return replace(hf(path), name="word_nano")
    least = PROMPT_TOKENS + LONGEST
    if min(layers, width, heads) < 1 or width % heads or context_length < least:
        raise Refusal(
            f"word_nano needs layers and heads from 1, a width that heads divide, and a context of "
            f"at least {least} tokens; got layers={layers}, width={width}, heads={heads}, "
            f"context_length={context_length}"
        )
    tokenizer = word_tokenizer(context_length=context_length)
    config = GPT2Config(
        vocab_size=len(VOCABULARY),
        n_positions=context_length,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        activation_function="gelu_new",
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,  # a pad token would make GPT-2 warn of packed rows
    )
    return random_model("word_nano", config, seed=seed, tokenizer=tokenizer)
