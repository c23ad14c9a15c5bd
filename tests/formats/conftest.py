"""Tokenizers of several habits, and files written on the spot."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lit_pref.formats import TextEncoder
from lit_pref.testing.tokenizer import byte_tokenizer


def plain_tokenizer(*, post="none"):
    """Bytes, then <s> 256, </s> 257, <end_of_turn> 258; no chat template.

    ``post`` is what the tokenizer puts around a text: none, bos, or bos_eos.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>", "<end_of_turn>"])
    if post != "none":
        single = "<s> $A </s>" if post == "bos_eos" else "<s> $A"
        backend.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<s>", 256), ("</s>", 257)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<end_of_turn>"],
    )


@pytest.fixture
def chat_encoder():
    """ChatML over bytes: 257 starts a turn, 258 ends it."""
    return TextEncoder(byte_tokenizer(), eos_ids=[258], context_length=200)


@pytest.fixture
def plain_encoder():
    return TextEncoder(plain_tokenizer(post="bos"), eos_ids=[257], context_length=60)


@pytest.fixture
def make_plain_tokenizer():
    return plain_tokenizer


@pytest.fixture
def write(tmp_path):
    """Writes rows (objects, or lines as they are) to a file and returns its path."""

    def write(*rows, name="data.jsonl", head=b""):
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_bytes(head + "".join(line + "\n" for line in lines).encode())
        return str(path)

    return write
