"""Language models by name. Factories check and describe; weights come with ``ModelSpec.load``."""

from __future__ import annotations

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lit_pref.policies.pretrained import DType, hf
from lit_pref.policies.smollm2 import smollm2
from lit_pref.policies.spec import (
    ModelSpec,
    config_identity,
    digest,
    dropout_off,
    eos_ids_of,
    pad_id_of,
)
from lit_pref.policies.tokenizer import byte_tokenizer
from lit_pref.types import Refusal

__all__ = [
    "DType",
    "ModelSpec",
    "eos_ids_of",
    "gpt_nano",
    "hf",
    "random_model",
    "smollm2",
    "tiny",
]


def gpt_nano(*, vocab_size: int = 100, context_length: int = 10, seed: int = 0) -> ModelSpec:
    """The policy of the paper's token bandit (arXiv 2404.14367): minGPT's "gpt-nano".

    A GPT-2 of 3 layers, 3 heads and width 48 with an untied head. With the defaults it has 90,192
    parameters and 4,800 in the head. It has no tokenizer and no end of sequence.

    Deviation: no dropout (0.1 in the reference code), so that a log-probability is a function
    of weights and tokens alone and the ratio of the first pass is exactly 1.

    Args:
        vocab_size: number of actions.
        context_length: most tokens, the prompt's included.
        seed: of the random weights.
    """
    if vocab_size < 2 or context_length < 2:
        raise Refusal(
            "gpt_nano needs vocab_size and context_length of at least 2, got "
            f"vocab_size={vocab_size}, context_length={context_length}; raise the smaller one."
        )
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=context_length,
        n_embd=48,
        n_layer=3,
        n_head=3,
        activation_function="gelu_new",
        initializer_range=0.02,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return random_model("gpt_nano", config, seed=seed)


def tiny(*, context_length: int = 512, seed: int = 0) -> ModelSpec:
    """A random Llama of 2 layers and width 64 that reads and writes bytes, made on the spot.

    Args:
        context_length: most tokens of prompt and response together.
        seed: of the random weights.
    """
    if context_length < 2:
        raise Refusal(f"tiny needs context_length of at least 2, got {context_length}; raise it.")
    tokenizer = byte_tokenizer(context_length=context_length)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context_length,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return random_model("tiny", config, seed=seed, tokenizer=tokenizer)


def random_model(
    name: str,
    config: PreTrainedConfig,
    *,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> ModelSpec:
    """A causal LM with random weights, a function of its config and seed alone.

    Args:
        name: how the user called it.
        config: its architecture; dropout is switched off.
        seed: of the weights.
        tokenizer: its tokenizer, if it has one.
    """
    dropout_off(config)

    def load() -> PreTrainedModel:
        # Only the CPU generator is used, and it is given back as it was.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)

    eos_ids = eos_ids_of(config, None, tokenizer)
    return ModelSpec(
        name=name,
        tokenizer=tokenizer,
        eos_ids=eos_ids,
        pad_id=pad_id_of(tokenizer, eos_ids),
        context_length=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        load=load,
        fingerprint=digest(name, seed, config_identity(config.to_dict())),
        config=config,
    )
