"""Reference log-probs of stored responses on disk: computed once, read by every run of a sweep.

The folder of a cache is named after what the numbers depend on besides the tokens: the weights
themselves, the model's config, the precision, the forward, the versions of torch and transformers.
A row is named after its token ids, which are all that a tokenizer and a chat template can change.
So an entry is either right or absent.

Shapes: ``B`` responses, ``T`` response tokens, ``n`` rows of a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lit_pref.types import FlatTokens

__all__ = ["ReferenceCache"]

log = logging.getLogger(__name__)

FORMAT = "1"
KEY_BYTES = 16


class ReferenceCache:
    """Log-probs by row, below a folder that many processes may use at the same time.

    Files are written whole under another name and renamed, never changed, and read with their
    check sum. One that is damaged or says that it belongs elsewhere is reported and left out; its
    rows are computed again.

    Args:
        root: folder of all caches; made when needed.
        facts: what the numbers depend on besides the tokens.
    """

    def __init__(self, root: str | Path, facts: Mapping[str, str]) -> None:
        self.facts = {**facts, "format": FORMAT}
        text = json.dumps(self.facts, sort_keys=True)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:32]
        self.folder = Path(root).expanduser() / "reference_logps" / self.fingerprint
        self._rows: dict[bytes, Tensor] = {}
        self._known: set[str] = set()
        self._said = False

    def logps(
        self,
        tokens: FlatTokens,
        stored: Sequence[bool],
        compute: Callable[[FlatTokens], Tensor],
    ) -> Tensor:
        """[T] log-probs of all response tokens, computed where they are not there yet.

        Args:
            tokens: the responses.
            stored: [B] which of them come from a stored set; others are never written.
            compute: [t] log-probs of a part of ``tokens``.
        """
        self._read_new_files()
        keys = _keys(tokens)
        found = {i: self._rows.get(key) for i, key in enumerate(keys) if stored[i]}
        there = {
            i: row for i, row in found.items() if row is not None and len(row) == tokens.lengths[i]
        }
        missing = [i for i in range(tokens.num_responses) if stored[i] and i not in there]
        fresh = [i for i in range(tokens.num_responses) if not stored[i]]
        # Apart: what files hold must not change how the fresh ones are packed, and so rounded.
        for part in (missing, fresh):
            if part:
                computed = compute(tokens.select(part)).float().cpu()
                pieces = computed.split([tokens.lengths[i] for i in part])
                there.update(zip(part, pieces, strict=True))
        self._write({keys[i]: there[i] for i in missing})
        if (total := sum(stored)) > 0:
            level = logging.DEBUG if self._said else logging.INFO  # not with every round
            self._said = True
            log.log(
                level,
                "reference log-probs: %d of %d stored responses were in %s",
                total - len(missing),
                total,
                self.folder,
            )
        rows = [there[i] for i in range(tokens.num_responses)]
        return torch.cat(rows) if rows else torch.zeros(0)

    def _read_new_files(self) -> None:
        """Rows of files that were not there the last time; of two equal rows the first is kept."""
        try:
            names = sorted(p.name for p in self.folder.glob("*.safetensors"))
        except OSError as error:
            log.warning("the reference cache %s cannot be read (%s)", self.folder, error)
            return
        for name in names:
            if name in self._known:
                continue
            self._known.add(name)
            try:
                for key, row in self._rows_of(self.folder / name).items():
                    self._rows.setdefault(key, row)
            except (OSError, SafetensorError, ValueError, KeyError) as error:
                log.warning(
                    "%s is left out of the reference cache and its rows are computed again: %s",
                    self.folder / name,
                    error,
                )

    def _rows_of(self, path: Path) -> dict[bytes, Tensor]:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in ("keys", "lengths", "logps")}
        if said.get("fingerprint") != self.fingerprint:
            raise ValueError(f"it belongs to another model or precision ({said.get('facts')})")
        if said.get("sha256") != _checksum(tensors):
            raise ValueError("its check sum differs")
        lengths = tensors["lengths"].tolist()
        keys = [bytes(row.tolist()) for row in tensors["keys"]]
        return dict(zip(keys, tensors["logps"].split(lengths), strict=True))

    def _write(self, rows: Mapping[bytes, Tensor]) -> None:
        """One new file; a cache that cannot be written is said and costs nothing else."""
        if not rows:
            return
        self._rows.update(rows)
        keys = torch.tensor([list(key) for key in rows], dtype=torch.uint8)
        tensors = {
            "keys": keys.reshape(-1, KEY_BYTES),
            "lengths": torch.tensor([len(row) for row in rows.values()], dtype=torch.int64),
            "logps": torch.cat(list(rows.values())),
        }
        found = _checksum(tensors)
        said = {
            "fingerprint": self.fingerprint,
            "facts": json.dumps(self.facts, sort_keys=True),
            "sha256": found,
        }
        name = f"{found[:32]}.safetensors"
        part = self.folder / f"{name}.{uuid.uuid4().hex}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(save(tensors, said))
            os.replace(part, self.folder / name)
            self._known.add(name)
        except OSError as error:
            log.warning("the reference cache %s cannot be written (%s)", self.folder, error)
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def _keys(tokens: FlatTokens) -> list[bytes]:
    """A name for each response, of its prompt's and its own token ids."""
    prompts = [p.cpu().numpy().tobytes() for p in tokens.prompt_ids.split(tokens.prompt_lengths)]
    responses = tokens.response_ids.cpu().split(tokens.lengths)
    out = []
    for response, p in zip(responses, tokens.prompt_of, strict=True):
        found = hashlib.blake2b(digest_size=KEY_BYTES)
        found.update(len(prompts[p]).to_bytes(8, "little"))
        found.update(prompts[p])
        found.update(response.numpy().tobytes())
        out.append(found.digest())
    return out


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in ("keys", "lengths", "logps"):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()
