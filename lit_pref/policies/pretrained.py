"""Causal language models of the Hugging Face format, from a folder or the hub."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from lit_pref.policies.spec import (
    ModelSpec,
    config_identity,
    digest,
    dropout_off,
    eos_ids_of,
    pad_id_of,
)
from lit_pref.types import Refusal

__all__ = ["DType", "hf", "no_progress_bars"]

log = logging.getLogger(__name__)

DType = Literal["float32", "bfloat16", "float16"]
Quantize = Literal["4bit", "8bit"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len")


def hf(
    path: str | Path,
    *,
    revision: str | None = None,
    dtype: DType = "float32",
    chat_template: str | Path | None = None,
    quantize: Quantize | None = None,
) -> ModelSpec:
    """Any causal language model of the Hugging Face format: a folder or a hub id.

    Code from a model's repository is never run. Dropout is switched off in its config.

    Args:
        path: a folder with config, weights and tokenizer, or ``"owner/name"`` on the hub.
        revision: branch, tag or commit on the hub.
        dtype: of the weights.
        chat_template: a Jinja file that replaces the tokenizer's own chat template.
        quantize: keep the weights in ``4bit`` (NF4, as QLoRA does, arXiv 2305.14314) or ``8bit``;
            needs ``bitsandbytes``, and adapters to train (``model.lora.rank``).

    Raises:
        Refusal: if there is no such model, it is not a causal language model, files are missing,
            the tokenizer does not fit the embedding, or the chat template does not work.
    """
    if dtype not in DTYPES:
        raise Refusal(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    if quantize is not None:
        _check_quantize(quantize)
    where = Path(path).expanduser()
    if folder := _is_folder(where, str(path)):
        _check_files(where, revision)
    source = str(where) if folder else str(path)
    config = _read(AutoConfig, source, folder=folder, revision=revision)
    commit = None if folder else _commit(source, revision)
    pinned = commit or revision
    _check_causal(config, source)
    tokenizer = _read(AutoTokenizer, source, folder=folder, revision=pinned)
    text_config = config.get_text_config(decoder=True)
    _check_tokenizer(tokenizer, text_config.vocab_size, source)
    if chat_template is not None:
        _set_chat_template(tokenizer, Path(chat_template).expanduser())
    dropout_off(config)
    try:
        generation = GenerationConfig.from_pretrained(
            source,
            revision=pinned,  # type: ignore[arg-type]  # None is the default branch
        )
    except OSError:  # the file is optional
        generation = None
    eos_ids = eos_ids_of(text_config, generation, tokenizer)
    if not eos_ids:
        log.warning("%s names no end-of-sequence token: every response runs to its limit", source)
    identity = _folder_identity(where) if folder else (source, pinned)
    return ModelSpec(
        name=str(path),
        tokenizer=tokenizer,
        eos_ids=eos_ids,
        pad_id=pad_id_of(tokenizer, eos_ids),
        context_length=_context_length(text_config, tokenizer),
        vocab_size=text_config.vocab_size,
        load=lambda: _load(source, config, revision=pinned, dtype=DTYPES[dtype], quantize=quantize),
        fingerprint=digest(dtype, identity, *([] if quantize is None else [quantize])),
        quantized=quantize is not None,
        config=config,
        dtype=DTYPES[dtype],
        weight_files=lambda: _weight_files(where) if folder else _cached_files(source, pinned),
    )


def _load(
    source: str,
    config: PreTrainedConfig,
    *,
    revision: str | None,
    dtype: torch.dtype,
    quantize: Quantize | None,
) -> PreTrainedModel:
    extra = {} if quantize is None else {"quantization_config": _quantization(quantize, dtype)}
    auto: Any = AutoModelForCausalLM  # declared without the second result of output_loading_info
    with no_progress_bars():
        try:
            model, info = auto.from_pretrained(
                source,
                config=copy.deepcopy(config),
                revision=revision,
                dtype=dtype,
                trust_remote_code=False,
                weights_only=True,
                output_loading_info=True,
                **extra,
            )
        except OSError as error:
            raise Refusal(
                f"The weights of {source!r} could not be read: {_brief(error)}"
            ) from error
    # transformers would fill these with random numbers and go on
    if wrong := [str(k) for k in (*info["missing_keys"], *info["mismatched_keys"])]:
        raise Refusal(
            f"The weights of {source!r} do not fit its config: {len(wrong)} tensors are missing or "
            f"have another shape, the first is {sorted(wrong)[0]}. Save the model again with "
            "save_pretrained from its causal language model class."
        )
    return model


def _check_quantize(quantize: str) -> None:
    if quantize not in ("4bit", "8bit"):
        raise Refusal(f"model.quantize must be 4bit, 8bit or null, got {quantize!r}.")
    if missing := [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]:
        raise Refusal(
            f"model.quantize={quantize} needs {' and '.join(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not installed; install with: "
            'pip install -e ".[peft,qlora]"'
        )


def _quantization(quantize: Quantize, dtype: torch.dtype) -> BitsAndBytesConfig:
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _is_folder(where: Path, path: str) -> bool:
    if where.is_dir():
        return True
    if where.is_file():
        raise Refusal(f"Expected a model folder, got the file {path!r}; give its folder.")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", path):
        raise Refusal(
            f"There is no folder {path!r}. Give a folder with config.json, weights and tokenizer "
            "(as save_pretrained writes it) or a hub id such as owner/name."
        )
    return False


def _check_files(where: Path, revision: str | None) -> None:
    if revision is not None:
        raise Refusal(f"revision={revision!r} is for hub ids, but {str(where)!r} is a folder.")
    if not (where / "config.json").is_file():
        adapter = (where / "adapter_config.json").is_file()
        kind = " It holds a PEFT adapter: merge it into its base model first." if adapter else ""
        raise Refusal(
            f"The folder {str(where)!r} has no config.json.{kind} Save the model there with "
            "save_pretrained, or give the folder that has it."
        )
    if not (found := _weight_files(where)):
        raise Refusal(
            f"The folder {str(where)!r} has no weights: expected {' or '.join(WEIGHTS)}, whole or "
            "sharded. Save the model there with save_pretrained."
        )
    if missing := [f.name for f in found if not f.is_file()]:
        raise Refusal(
            f"The folder {str(where)!r} lacks {len(missing)} of the weight files that its index "
            f"names, the first is {missing[0]}; copy the folder again."
        )


def _weight_files(where: Path) -> list[Path]:
    """The weight files that transformers will read; those an index names may be missing."""
    for name in WEIGHTS:
        if (where / name).is_file():
            return [where / name]
        index = where / f"{name}.index.json"
        if index.is_file():
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [where / n for n in sorted(set(names))]
    return []


def _cached_files(source: str, revision: str | None) -> list[Path]:
    """The weight files of a hub id that were downloaded already."""
    for name in (WEIGHTS[0], f"{WEIGHTS[0]}.index.json"):
        cached = try_to_load_from_cache(source, name, revision=revision)
        if isinstance(cached, str):
            return _weight_files(Path(cached).parent)
    return []


def _read(auto: Any, source: str, *, folder: bool, revision: str | None) -> Any:
    """``auto.from_pretrained``, where whatever goes wrong is told in one sentence."""
    what = "tokenizer" if auto is AutoTokenizer else "config"
    try:
        return auto.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:  # broad on purpose: it reads files that others wrote
        if "trust_remote_code" in str(error):
            raise Refusal(
                f"The {what} of {source!r} needs Python code from its own repository, which is "
                "never run here; use a model type that transformers has built in."
            ) from error
        if not folder and isinstance(error, OSError):
            raise Refusal(
                f"There is no folder {source!r} here, and as a hub id its {what} could not be "
                f"read: {_brief(error)} Check the name and the network (or the login, if it is "
                "gated), or give a local folder."
            ) from error
        raise Refusal(
            f"The {what} of {source!r} could not be read: {_brief(error)} "
            f"Save it again with the save_pretrained of the {what}."
        ) from error


def _check_causal(config: PreTrainedConfig, source: str) -> None:
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    saved_as = list(getattr(config, "architectures", None) or [])
    expected = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)] if known else ()
    classes = expected if isinstance(expected, tuple) else (expected,)
    # Encoders have a causal class too, so what was saved decides.
    fits = not saved_as or any(c is not None and c.__name__ in saved_as for c in classes)
    if known and fits and not config.is_encoder_decoder:
        return
    raise Refusal(
        f"Expected a causal language model, got {' '.join(saved_as) or 'a model'} of type "
        f"{config.model_type!r} in {source!r}; choose a decoder-only model saved with its "
        "language model head (...ForCausalLM)."
    )


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int, source: str) -> None:
    vocabulary = tokenizer.get_vocab()
    # A folder without tokenizer files can yield one that knows special tokens alone.
    if len(vocabulary) <= len(tokenizer.all_special_ids):
        raise Refusal(
            f"{source!r} has no usable tokenizer ({len(vocabulary)} tokens); save the model's "
            "tokenizer in the same folder with save_pretrained."
        )
    token, largest = max(vocabulary.items(), key=lambda item: item[1])
    if largest >= vocab_size:
        raise Refusal(
            f"The tokenizer of {source!r} is larger than the embedding: token {token!r} has id "
            f"{largest}, the embedding has {vocab_size} rows. Use the model's own tokenizer, or "
            "call resize_token_embeddings and save the model again."
        )


def _set_chat_template(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    if not file.is_file():
        raise Refusal(f"There is no chat template file {str(file)!r}; give a Jinja file.")
    tokenizer.chat_template = file.read_text(encoding="utf-8")
    try:
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            tokenize=False,
        )
    except Exception as error:  # broad on purpose: a template can fail in any way
        raise Refusal(
            f"The chat template {str(file)!r} cannot lay out a user and an assistant message: "
            f"{_brief(error)} Correct the file."
        ) from error


def _context_length(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    for name in CONTEXT_NAMES:
        if isinstance(length := getattr(config, name, None), int):
            return length
    # Models without positions have no limit; a tokenizer that knows none says 1e30.
    return min(int(tokenizer.model_max_length), sys.maxsize)


def _folder_identity(where: Path) -> tuple[object, ...]:
    """Config and the SHA-256 of every weight file (about a second per GB)."""
    fields = json.loads((where / "config.json").read_text(encoding="utf-8"))
    hashes = []
    for file in _weight_files(where):
        sha = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                sha.update(block)
        hashes.append((file.name, sha.hexdigest()))
    return (config_identity(fields), *hashes)


def _commit(source: str, revision: str | None) -> str | None:
    """The commit that a branch or tag of the hub meant when its config was read just now."""
    cached = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else None


def _brief(error: BaseException) -> str:
    """The first line of an error's message, as a sentence."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line if line.endswith((".", "!")) else line + "."


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Without transformers' progress bars; its warnings stay."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()
