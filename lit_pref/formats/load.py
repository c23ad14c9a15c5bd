"""From the user's file to prompts and groups: in memory, or mapped from a cache on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from lit_pref.formats.cache import cached_groups
from lit_pref.formats.columns import check_columns
from lit_pref.formats.drops import Drops
from lit_pref.formats.encode import TextEncoder
from lit_pref.formats.readers import open_source
from lit_pref.formats.reading import Reading
from lit_pref.formats.store import GroupSequence, ListedGroups
from lit_pref.types import Prompt, Refusal

__all__ = ["Loaded", "load_groups", "load_prompts"]

Items = TypeVar("Items", covariant=True)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[Items]):
    """What a file gave: the usable items in the order of the file, and what was dropped."""

    items: Items
    drops: Drops


def load_prompts(
    path: str | Path,
    *,
    encoder: TextEncoder,
    columns: Mapping[str, str] | None = None,
    max_dropped: float = 0.2,
    first_id: int = 0,
    name: str | None = None,
    cache_dir: str | Path | None = None,
) -> Loaded[Sequence[Prompt]]:
    """Read a file of prompts; columns beside the prompt's are kept in ``Prompt.columns``.

    Args:
        path: the file (``open_source`` says which formats there are).
        encoder: tokenises and limits lengths.
        columns: the user's column names by ours.
        max_dropped: largest share of rows that may be unusable.
        first_id: id of a prompt is this plus its line (or row).
        name: what to call the file; the path as given by default.
        cache_dir: where tokenised data is kept; None keeps it in memory alone.

    Raises:
        Refusal: the file is not what it should be, or too much of it is unusable.
    """
    loaded = _load(path, encoder, columns, max_dropped, first_id, name, cache_dir, "prompts")
    return Loaded([group.prompt for group in loaded.items], loaded.drops)


def load_groups(
    path: str | Path,
    *,
    encoder: TextEncoder,
    columns: Mapping[str, str] | None = None,
    max_dropped: float = 0.2,
    first_id: int = 0,
    name: str | None = None,
    cache_dir: str | Path | None = None,
) -> Loaded[GroupSequence]:
    """Read a file of given responses as groups.

    A pair is a group of two: rank 0 is chosen, rank 1 rejected. With a cache the groups are
    decoded one by one from a memory-mapped file. Arguments and refusals as for ``load_prompts``.
    """
    return _load(path, encoder, columns, max_dropped, first_id, name, cache_dir, "responses")


def _load(
    path: str | Path,
    encoder: TextEncoder,
    columns: Mapping[str, str] | None,
    max_dropped: float,
    first_id: int,
    name: str | None,
    cache_dir: str | Path | None,
    want: Literal["prompts", "responses"],
) -> Loaded[GroupSequence]:
    if not 0 <= max_dropped <= 1:
        raise Refusal(
            f"task.max_dropped is {max_dropped}. Expected a share of rows from 0 to 1, such as 0.2."
        )
    source = open_source(path, name=name)
    reading = Reading(source, encoder=encoder, columns=check_columns(columns), want=want)
    if cache_dir is not None:
        found = cached_groups(reading, Path(cache_dir).expanduser(), first_id=first_id)
        if found is not None:
            found[1].close(max_dropped)
            return Loaded(*found)
    groups = list(reading.groups())
    for group in groups:
        group.prompt.id += first_id
    reading.drops.close(max_dropped)
    return Loaded(ListedGroups(groups), reading.drops)
