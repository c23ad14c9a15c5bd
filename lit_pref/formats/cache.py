"""Tokenised data on disk, under a fingerprint of everything it depends on.

Two files: ``<fingerprint>.arrow`` (the groups) and ``<fingerprint>.json`` (what was dropped, and
check sums of both). The second is written last, and both by renaming: what is half written
is not there. Every file can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
from pathlib import Path
from typing import Any

from lit_pref.formats.drops import Drops
from lit_pref.formats.fingerprint import fingerprint
from lit_pref.formats.reading import Reading
from lit_pref.formats.store import MappedGroups, write_groups
from lit_pref.types import Refusal

__all__ = ["cached_groups"]

log = logging.getLogger(__name__)


def cached_groups(
    reading: Reading, folder: Path, *, first_id: int
) -> tuple[MappedGroups, Drops] | None:
    """The groups of a file, from the cache or read, tokenised and put there now.

    Args:
        reading: how to read the file.
        folder: the cache.
        first_id: see ``MappedGroups``.

    Returns:
        The groups and what was dropped; None where nothing can be kept on disk (no ``pyarrow``,
        a data set without files, a folder that cannot be written), which is logged.
    """
    source = reading.source
    if importlib.util.find_spec("pyarrow") is None:
        log.info(
            "%s is kept in memory; with pyarrow (extra datasets) it is mapped from disk.",
            source.name,
        )
        return None
    content = source.digest()
    if content is None:
        log.info("%s is kept in memory: it comes from no file.", source.name)
        return None
    name = fingerprint(
        reading.encoder,
        content=content,
        columns=dict(reading.columns),
        want=reading.want,
        kind=source.kind,
    )
    path = folder / f"{name}.arrow"
    try:
        drops = _known(path, reading)
        if drops is None:
            folder.mkdir(parents=True, exist_ok=True)
            drops = _write(path, reading, content)
    except OSError as error:
        log.warning("%s is kept in memory: %s cannot be used (%s).", source.name, folder, error)
        reading.drops = Drops(file=source.name, unit=source.unit)
        return None
    return MappedGroups(path, file=source.name, first_id=first_id), drops


def _known(path: Path, reading: Reading) -> Drops | None:
    """What was dropped, if the cache is there and whole."""
    try:
        note: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        whole = note.pop("of_this_file") == _text_sum(note)
        if whole and note["sha256"] == _checksum(path):
            log.info("%s: %s (tokenised before: %s).", reading.source.name, note["layout"], path)
            return Drops.from_json(note["drops"], file=reading.source.name)
        log.warning("%s is damaged and is made again.", path)
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError):
        log.warning("%s is damaged and is made again.", path.with_suffix(".json"))
    return None


def _write(path: Path, reading: Reading, content: str) -> Drops:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    note = part.with_suffix(".json")
    try:
        write_groups(reading.groups(), part)
        if reading.source.digest() != content:
            raise Refusal(
                f"{reading.source.name} was changed while it was read. Expected a file that stays "
                "as it is; start again."
            )
        layout = "" if reading.layout is None else reading.layout.describe()
        record = {"sha256": _checksum(part), "layout": layout, "drops": reading.drops.to_json()}
        note.write_text(json.dumps({**record, "of_this_file": _text_sum(record)}))
        os.replace(part, path)
        os.replace(note, path.with_suffix(".json"))
    finally:
        part.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
    return reading.drops


def _text_sum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _checksum(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            total.update(piece)
    return total.hexdigest()
