"""Rows of Parquet files, saved Hugging Face datasets and hub ids, through one piece of code.

``pyarrow`` and ``datasets`` (extra ``datasets``) are imported when such a file is named.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_pref.formats.rows import Row
from lit_pref.types import Refusal

__all__ = ["dataset_files", "load_hub", "load_saved", "read_dataset", "read_parquet", "require"]

_BATCH = 1000  # rows decoded at a time


def require(package: str, what: str) -> Any:
    """Import an optional package.

    Args:
        package: ``pyarrow`` or ``datasets``, or a module of theirs.
        what: what cannot be done without it, for the message.

    Raises:
        Refusal: it is not installed; names the command that installs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise Refusal(
            f"{what} needs the package {package.partition('.')[0]}, which is not installed "
            f'({error}); install it with: pip install "lit-pref[datasets]", or convert the data '
            "to JSONL"
        ) from error


def read_parquet(path: Path, name: str) -> Iterator[Row]:
    """The rows of a Parquet file, a thousand at a time."""
    parquet = require("pyarrow.parquet", f"{name}: a Parquet file")
    arrow = require("pyarrow", f"{name}: a Parquet file")
    number = 0
    try:
        with parquet.ParquetFile(path, memory_map=True) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for data in batch.to_pylist():
                    number += 1
                    yield Row(file=name, number=number, data=data)
    except (arrow.ArrowException, UnicodeDecodeError) as error:
        raise Refusal(
            f"{name}, after row {number}: not a readable Parquet file ({_first_line(error)}). "
            "Expected a whole Parquet file; write it again."
        ) from None


def load_saved(path: Path, name: str, split: str | None) -> Any:
    """A folder written by ``save_to_disk`` as one memory-mapped dataset."""
    datasets = require("datasets", f"{name}: a saved dataset")
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises whatever a broken file makes it meet
        raise Refusal(
            f"{name} cannot be loaded as a saved dataset ({_first_line(error)}). Expected a folder "
            "written by Dataset.save_to_disk; write it again."
        ) from error
    return _one_split(loaded, name, split)


def load_hub(identifier: str, name: str, split: str | None) -> Any:
    """A dataset of the Hugging Face hub, or from its local cache without a network.

    Args:
        identifier: ``owner/name`` or ``owner/name/configuration``.
        name: what to call it in messages.
        split: its split; the only one or ``train`` by default.
    """
    datasets = require("datasets", f"{name}: a dataset of the hub")
    owner, repository, *configuration = identifier.split("/")
    try:
        loaded = datasets.load_dataset(f"{owner}/{repository}", *configuration)
    except Exception as error:  # network, rights, unknown name, broken files
        raise Refusal(
            f"{name} is no file or folder here, and the hub gave no dataset of this name "
            f"({_first_line(error)}). Check the path, or the id, the network and your rights."
        ) from error
    return _one_split(loaded, name, split)


def read_dataset(dataset: Any, name: str) -> Iterator[Row]:
    """The rows of a ``datasets.Dataset``, a thousand at a time."""
    arrow = require("pyarrow", f"{name}: a dataset")
    tables = dataset.with_format("arrow")
    for start in range(0, len(dataset), _BATCH):
        try:
            rows = tables[start : start + _BATCH].to_pylist()
        except (arrow.ArrowException, UnicodeDecodeError) as error:
            raise Refusal(
                f"{name}, row {start + 1} or later: cannot be read ({_first_line(error)}). Write "
                "the dataset again."
            ) from None
        for offset, data in enumerate(rows):
            yield Row(file=name, number=start + offset + 1, data=data)


def dataset_files(dataset: Any) -> list[Path]:
    """The Arrow files that a dataset is mapped from; none for one in memory."""
    return [Path(file["filename"]) for file in dataset.cache_files]


def _one_split(loaded: Any, name: str, split: str | None) -> Any:
    if not isinstance(loaded, Mapping):
        if split is not None:
            raise Refusal(f"{name} has no splits; leave :{split} out")
        return loaded
    splits = list(loaded)
    if split is None:
        split = splits[0] if len(splits) == 1 else "train"
    if split not in loaded:
        raise Refusal(
            f"{name}: there is no split {split!r}. Expected one of {', '.join(splits)}; name it "
            f"after a colon, such as {name.partition(':')[0]}:{splits[0] if splits else 'train'}"
        )
    return loaded[split]


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
