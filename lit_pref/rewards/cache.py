"""Answers of remote services on disk: paid for once, the same again after a restart."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from lit_pref.types import Refusal

__all__ = ["DiskCache"]

log = logging.getLogger(__name__)

_FORMAT = 1


class DiskCache:
    """One small file for each answer, written whole or not at all.

    Any number of threads and processes may use one folder: files are replaced as a whole, and two
    that answer the same question write the same file. A damaged file (its check sum is wrong) is
    no answer; it is counted, said once, and written again.

    Args:
        folder: where to; None keeps nothing.

    Raises:
        Refusal: the folder cannot be made.
    """

    def __init__(self, folder: str | None) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()
        self.hits = self.damaged = self.unwritten = 0
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise Refusal(
                    f"reward.cache={folder} cannot be made ({error}); choose another folder, or "
                    "reward.cache=null for none"
                ) from error

    @staticmethod
    def key(**question: Any) -> str:
        """Name of a question: a digest of everything that can change its answer."""
        text = json.dumps([_FORMAT, question], sort_keys=True, ensure_ascii=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()

    def get(self, key: str) -> Any | None:
        """The answer, None if there is none that can be trusted."""
        if self.folder is None:
            return None
        try:
            text = self._path(key).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            self._broken(key, str(error))
            return None
        try:
            entry = json.loads(text)
            value, check = entry["value"], entry["check"]
        except (ValueError, KeyError, TypeError) as error:
            self._broken(key, f"{type(error).__name__}: {error}")
            return None
        if check != _check(key, value):
            self._broken(key, "its check sum is wrong")
            return None
        self.hits += 1
        return value

    def put(self, key: str, value: Any) -> None:
        """Keep an answer (a JSON value, not None); a failure to write is said, not raised."""
        if self.folder is None:
            return
        path = self._path(key)
        text = json.dumps({"check": _check(key, value), "value": value}, ensure_ascii=True)
        part = None
        try:
            path.parent.mkdir(exist_ok=True)
            handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(part, path)
        except OSError as error:
            if self.unwritten == 0:
                log.warning("the reward cache %s cannot be written: %s", self.folder, error)
            self.unwritten += 1
            if part is not None and os.path.exists(part):
                os.unlink(part)

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key[2:]}.json"

    def _broken(self, key: str, why: str) -> None:
        if self.damaged == 0:
            log.warning("damaged entry of the reward cache, asked again: %s: %s", key, why)
        self.damaged += 1


def _check(key: str, value: Any) -> str:
    return hashlib.sha256((key + json.dumps(value, sort_keys=True)).encode()).hexdigest()[:16]
