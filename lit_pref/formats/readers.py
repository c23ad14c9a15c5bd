"""From what the user names to rows: which format it is, and who reads it.

A format is recognised by its name and its first bytes, and both must agree: a file that is not
what it claims to be is refused, never guessed at.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

from lit_pref.formats import arrow_readers
from lit_pref.formats.rows import Row
from lit_pref.formats.text_readers import EXAMPLE, read_csv, read_json_list, read_jsonl
from lit_pref.types import Refusal

__all__ = ["Row", "Source", "open_source", "read_rows"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt", ".gz")

# What a file that is no text betrays itself by, and what to do about it.
_SIGNATURES = (
    (b"\x1f\x8b", "gzip data", "name it .gz, or unpack it first (gunzip)"),
    (b"PK\x03\x04", "a zip archive (or a spreadsheet, or a PyTorch file)", "unpack or convert it"),
    (b"PAR1", "a Parquet file", "name it .parquet"),
    (b"ARROW1", "an Arrow file", "name the folder that save_to_disk wrote"),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
    (b"\x80", "a pickle or other binary data", "convert it to JSONL; pickles are never opened"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where rows come from.

    Attributes:
        name: the file, as the user named it.
        kind: its format, for people.
        unit: whether its rows are named by ``line`` or by number (``row``).
        rows: the rows, streamed, from the first one at every call.
        digest: stands for every byte that the rows come from; None where that is unknown.
    """

    name: str
    kind: str
    unit: Literal["line", "row"]
    rows: Callable[[], Iterator[Row]]
    digest: Callable[[], str | None]


def read_rows(path: str | Path, *, name: str | None = None) -> Iterator[Row]:
    """Stream the rows of a file; see ``open_source``."""
    yield from open_source(path, name=name).rows()


def open_source(path: str | Path, *, name: str | None = None) -> Source:
    """Find out what the user named.

    JSON Lines, a JSON list and CSV (each also gzipped), Parquet, a folder written by
    ``Dataset.save_to_disk`` (``FOLDER`` or ``FOLDER:SPLIT``), or an id of the Hugging Face hub
    (``OWNER/NAME``, ``OWNER/NAME/CONFIGURATION``, with ``:SPLIT`` where there are several).

    Args:
        path: what the user named.
        name: what to call it in messages and records; the path as given by default.

    Raises:
        Refusal: it is missing, cannot be opened, or is not what it claims to be.
    """
    text = str(path)
    name = text if name is None else name
    try:
        if Path(path).is_dir():
            return _folder(Path(path), name, None)
        os.stat(path)  # not exists(), which hides what is wrong with a path
        return _file(Path(path), name)
    except FileNotFoundError:
        return _elsewhere(text, name)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        if isinstance(error, Refusal):
            raise
        raise Refusal(f"{name} cannot be read: {error}. Check the path and its rights.") from None


def _elsewhere(text: str, name: str) -> Source:
    """What is no path: ``FOLDER:SPLIT`` or an id of the hub."""
    place, _, split = text.partition(":")
    if split and Path(place).is_dir():
        return _folder(Path(place), name, split)
    extra = ""
    if _HUB_ID.fullmatch(place) and not place.lower().endswith(_SUFFIXES):
        if importlib.util.find_spec("datasets") is not None:
            return _dataset(lambda: arrow_readers.load_hub(place, name, split or None), name, "hub")
        extra = ' If it is a dataset of the hub: pip install "lit-pref[datasets]".'
    raise Refusal(
        f"{name} does not exist. Expected a file with {EXAMPLE}; check the path (it is "
        f"relative to the folder the command is started from).{extra}"
    )


def _folder(path: Path, name: str, split: str | None) -> Source:
    if not any((path / f).exists() for f in ("state.json", "dataset_dict.json")):
        raise Refusal(
            f"{name} is a folder. Expected a file with {EXAMPLE}, or a folder written by "
            "Dataset.save_to_disk."
        )
    return _dataset(lambda: arrow_readers.load_saved(path, name, split), name, "saved")


def _dataset(load: Callable[[], object], name: str, kind: str) -> Source:
    dataset = load()

    def digest() -> str | None:
        files = arrow_readers.dataset_files(dataset)
        features = repr(getattr(dataset, "features", ""))
        return _digest(files, features, str(len(dataset))) if files else None  # type: ignore[arg-type]

    return Source(
        name=name,
        kind="a saved dataset" if kind == "saved" else "a dataset of the hub",
        unit="row",
        rows=lambda: arrow_readers.read_dataset(dataset, name),
        digest=digest,
    )


def _file(path: Path, name: str) -> Source:
    packed = path.name.lower().endswith(".gz")
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    with path.open("rb") as raw:
        first = raw.read(16)
    if packed and first and not first.startswith(b"\x1f\x8b"):
        raise Refusal(f"{name} is not gzip data, although its name ends in .gz; rename it.")
    if suffix in (".parquet", ".pq") and not packed:
        if not first.startswith(b"PAR1"):
            raise Refusal(
                f"{name} is not a Parquet file, although its name ends in {suffix}. Expected one; "
                "write it again, or rename it to what it is."
            )
        return _source(path, name, "Parquet", "row", lambda: arrow_readers.read_parquet(path, name))
    with _opened(path, packed, name) as file:
        head = file.read(2**16)
    for signature, what, remedy in _SIGNATURES:
        if head.startswith(signature):
            raise Refusal(f"{name} is {what}. Expected UTF-8 text with {EXAMPLE}: {remedy}.")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if suffix in (".csv", ".tsv"):
        if start in (b"{", b"["):
            raise Refusal(
                f"{name}, line 1: JSON, although its name ends in {suffix}. Expected a header such "
                "as prompt,chosen,rejected; rename the file to .jsonl or .json."
            )
        delimiter = _delimiter(suffix, head)

        def rows_of(file: BinaryIO) -> Iterator[Row]:
            return read_csv(file, name, delimiter=delimiter)

        kind, unit, read = "CSV", "line", rows_of
    elif start == b"[" and suffix not in (".jsonl", ".ndjson"):
        kind, unit, read = "a JSON list", "row", lambda file: read_json_list(file, name)
    else:
        kind, unit, read = "JSON Lines", "line", lambda file: read_jsonl(file, name)

    def rows() -> Iterator[Row]:
        with _opened(path, packed, name) as file:
            yield from read(file)

    return _source(path, name, kind + (", gzipped" if packed else ""), unit, rows)


def _source(
    path: Path, name: str, kind: str, unit: str, rows: Callable[[], Iterator[Row]]
) -> Source:
    return Source(
        name=name,
        kind=kind,
        unit=cast("Literal['line', 'row']", unit),
        rows=rows,
        digest=lambda: _digest([path]),
    )


@contextmanager
def _opened(path: Path, packed: bool, name: str) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked; what goes wrong while reading names the file."""
    try:
        with path.open("rb") as raw:
            yield cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
    except (OSError, EOFError, zlib.error) as error:
        what = "damaged gzip data" if packed else "not readable"
        raise Refusal(
            f"{name} is {what} ({error}). Write or copy the file again, or check its rights."
        ) from None


def _delimiter(suffix: str, head: bytes) -> str:
    """Tab for .tsv; for .csv the commonest of comma, semicolon and tab in the header."""
    if suffix == ".tsv":
        return "\t"
    header = head.split(b"\n", 1)[0]
    return max(",;\t", key=lambda d: header.count(d.encode()))


def _digest(files: list[Path], *more: str) -> str:
    """SHA-256 over every byte of these files: size and time say too little."""
    total = hashlib.sha256()
    for file in files:
        each = hashlib.sha256()
        with file.open("rb") as opened:
            while piece := opened.read(2**20):
                each.update(piece)
        total.update(each.digest())
    for text in more:
        total.update(text.encode())
    return total.hexdigest()
