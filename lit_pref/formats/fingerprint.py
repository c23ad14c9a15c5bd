"""What tokenised data depends on, as one name: a cache under another name is another cache."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lit_pref
from lit_pref.formats.encode import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["fingerprint", "library_versions", "tokenizer_digest"]

_LIBRARIES = ("transformers", "tokenizers", "jinja2", "pyarrow")


def fingerprint(
    encoder: TextEncoder, *, content: str, columns: dict[str, str], want: str, kind: str
) -> str:
    """A name for the tokenised data of a file; equal only if nothing that matters differs.

    Args:
        encoder: its tokenizer (files and chat template) and its options.
        content: digest of every byte of the file.
        columns: the user's column names by ours.
        want: prompts or responses.
        kind: the format the file was read as.
    """
    parts: dict[str, Any] = {
        "tokenizer": tokenizer_digest(encoder.tokenizer),
        "template": encoder.tokenizer.chat_template,
        "content": content,
        "options": encoder.options(),
        "columns": columns,
        "want": want,
        "kind": kind,
        "versions": library_versions(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over everything that the tokenizer writes when it is saved, and its class."""
    total = hashlib.sha256(f"{type(tokenizer).__module__}.{type(tokenizer).__name__}".encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
            total.update(str(file.relative_to(folder)).encode())
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of what tokenises and stores, and the text of our own reading code."""
    versions = {name: _version(name) for name in _LIBRARIES}
    own = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):  # a clone changes without a version
        own.update(file.read_bytes())
    return {**versions, "lit_pref": lit_pref.__version__, "formats": own.hexdigest()}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
