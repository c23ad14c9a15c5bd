"""Groups as a sequence: a list, or rows of a memory-mapped Arrow file that are decoded one by one.

Both answer what an objective asks of the whole set (``Facts``) without going through the groups.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from lit_pref.types import Group, Messages, Prompt, Response

if TYPE_CHECKING:
    import pyarrow

__all__ = ["Facts", "GroupSequence", "ListedGroups", "MappedGroups", "facts_of", "prompt_key"]

_BATCH = 512  # rows of a record batch
_BATCHES_KEPT = 256  # handles of mapped batches, 10 KB each


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What objectives may need to know of a set of groups.

    Attributes:
        least_responses: fewest responses in a group.
        unscored: the first group with a response without reward, None if there is none.
        unknown: the first group with a response without the log-probs of what sampled it.
    """

    least_responses: int
    unscored: Group | None
    unknown: Group | None


class GroupSequence(Sequence[Group]):
    """Groups in the order of their file; slices and selections are as cheap as they can be."""

    @abstractmethod
    def select(self, rows: Sequence[int]) -> GroupSequence:
        """These groups (indices), in this order."""

    @abstractmethod
    def keys(self) -> Iterator[bytes]:
        """``prompt_key`` of every group."""

    @abstractmethod
    def facts(self) -> Facts:
        """What is true of every group."""

    @overload
    def __getitem__(self, index: int) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> GroupSequence: ...
    @abstractmethod
    def __getitem__(self, index: int | slice) -> Group | GroupSequence: ...


def facts_of(groups: Sequence[Group]) -> Facts:
    """``Facts`` of any sequence of groups; of a mapped one without decoding it."""
    if isinstance(groups, GroupSequence):
        return groups.facts()
    least, unscored, unknown = 0, None, None
    for n, group in enumerate(groups):
        count = len(group.responses)
        least = count if n == 0 else min(least, count)
        if unscored is None and any(r.reward is None for r in group.responses):
            unscored = group
        if unknown is None and any(r.behaviour_logps is None for r in group.responses):
            unknown = group
    return Facts(least_responses=least, unscored=unscored, unknown=unknown)


def prompt_key(text: str | Messages) -> bytes:
    """16 bytes, equal for prompts that say the same: a string equals one user message."""
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    canonical = json.dumps(messages, sort_keys=True)
    return hashlib.sha256(canonical.encode()).digest()[:16]


class ListedGroups(GroupSequence):
    """Groups in memory.

    Args:
        groups: the groups.
    """

    def __init__(self, groups: list[Group]) -> None:
        self._groups = groups

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: Any) -> Any:
        found = self._groups[index]
        return ListedGroups(found) if isinstance(index, slice) else found

    def select(self, rows: Sequence[int]) -> ListedGroups:
        return ListedGroups([self._groups[row] for row in rows])

    def keys(self) -> Iterator[bytes]:
        return (prompt_key(g.prompt.text) for g in self._groups)

    def facts(self) -> Facts:
        return facts_of(self._groups)


class MappedGroups(GroupSequence):
    """Rows of a memory-mapped Arrow file, each decoded when it is asked for.

    Args:
        path: a file that ``write_groups`` wrote.
        file: name of the file that the groups were read from.
        first_id: added to the row's number to make the prompt's id.
        rows: which rows, by index; all by default.
    """

    def __init__(
        self, path: Path, *, file: str, first_id: int, rows: Sequence[int] | None = None
    ) -> None:
        import pyarrow as pa

        self._path, self._file, self._first_id = path, file, first_id
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches: dict[int, pyarrow.RecordBatch] = {}  # views of the map, not copies
        count = self._reader.num_record_batches
        total = (count - 1) * _BATCH + self._batch(count - 1).num_rows if count else 0
        self._every = range(total)
        self._rows: Sequence[int] = self._every if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        rows = self._rows[index]
        return self._with(rows) if isinstance(index, slice) else self._decode(rows)  # type: ignore[arg-type]

    def select(self, rows: Sequence[int]) -> MappedGroups:
        return self._with(array("q", (self._rows[row] for row in rows)))

    def keys(self) -> Iterator[bytes]:
        keys = (key for value in self._column("key") for key in value.to_pylist())
        if self._rows == self._every:
            return keys
        every = list(keys)
        return (every[row] for row in self._rows)

    def facts(self) -> Facts:
        """From the columns that were computed when the file was written."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if not self._rows:
            return Facts(least_responses=0, unscored=None, unknown=None)
        every = self._rows == self._every
        rows = None if every else pa.array(self._rows)

        def chosen(name: str) -> pyarrow.ChunkedArray:
            values = pa.chunked_array(self._column(name))
            return values if rows is None else values.take(rows)

        def first_false(name: str) -> Group | None:
            index = pc.index(chosen(name), False).as_py()
            return None if index < 0 else self[index]

        return Facts(
            least_responses=pc.min(chosen("count")).as_py(),
            unscored=first_false("scored"),
            unknown=first_false("behaviours_known"),
        )

    def _with(self, rows: Sequence[int]) -> MappedGroups:
        return MappedGroups(self._path, file=self._file, first_id=self._first_id, rows=rows)

    def _column(self, name: str) -> list[pyarrow.Array]:
        return [self._batch(n).column(name) for n in range(self._reader.num_record_batches)]

    def _batch(self, number: int) -> pyarrow.RecordBatch:
        if number not in self._batches:
            if len(self._batches) >= _BATCHES_KEPT:
                self._batches.clear()
            self._batches[number] = self._reader.get_batch(number)
        return self._batches[number]

    def _decode(self, row: int) -> Group:
        batch, offset = divmod(row, _BATCH)
        data = self._batch(batch).slice(offset, 1).to_pylist()[0]
        text = json.loads(data["messages"]) if data["text"] is None else data["text"]
        prompt = Prompt(
            id=self._first_id + data["row"],
            text=text,
            ids=data["ids"],
            file=self._file,
            row=data["row"],
            columns={} if data["columns"] is None else json.loads(data["columns"]),
        )
        return Group(
            prompt=prompt,
            responses=[Response(**r) for r in data["responses"]],
            margin=data["margin"],
            weight=data["weight"],
        )


def write_groups(groups: Iterable[Group], path: Path) -> int:
    """Write groups to an Arrow file, a batch at a time.

    Args:
        groups: the groups; the row of each prompt must be set.
        path: the file.

    Returns:
        How many there were.
    """
    import pyarrow as pa

    schema = _schema()
    stream, total = iter(groups), 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        while rows := [_encode(group) for group in islice(stream, _BATCH)]:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
            total += len(rows)
    return total


def _encode(group: Group) -> dict[str, Any]:
    prompt, responses = group.prompt, group.responses
    spoken = isinstance(prompt.text, str)
    return {
        "row": prompt.row,
        "key": prompt_key(prompt.text),
        "ids": prompt.ids,
        "text": prompt.text if spoken else None,
        "messages": None if spoken else json.dumps(prompt.text),
        "columns": json.dumps(prompt.columns, default=str) if prompt.columns else None,
        "margin": group.margin,
        "weight": group.weight,
        "responses": [r.to_json() for r in responses],
        "count": len(responses),
        "scored": all(r.reward is not None for r in responses),
        "behaviours_known": all(r.behaviour_logps is not None for r in responses),
    }


def _schema() -> pyarrow.Schema:
    import pyarrow as pa

    ids = pa.list_(pa.int32())
    response = pa.struct(
        {
            "ids": ids,
            "text": pa.string(),
            "reward": pa.float64(),
            "label": pa.bool_(),
            "rank": pa.int32(),
            "behaviour": pa.string(),
            "behaviour_logps": pa.list_(pa.float64()),
            "finished": pa.bool_(),
        }
    )
    return pa.schema(
        {
            "row": pa.int64(),
            "key": pa.binary(16),
            "ids": ids,
            "text": pa.string(),
            "messages": pa.string(),
            "columns": pa.string(),
            "margin": pa.float64(),
            "weight": pa.float64(),
            "responses": pa.list_(response),
            "count": pa.int32(),
            "scored": pa.bool_(),
            "behaviours_known": pa.bool_(),
        }
    )
