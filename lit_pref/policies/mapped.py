"""Frozen weights that stay in the model's own file instead of in memory."""

from __future__ import annotations

import json
import logging
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_pref.engine.allocator import give_back_freed_memory

__all__ = ["MappedWeights", "header_of"]

log = logging.getLogger(__name__)

LARGE = 64 * 2**20
"""From so many bytes on, room is made first: what a training step needs is free meanwhile."""
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def header_of(path: str | Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file holds, by name, and where its data begin.

    Args:
        path: the file.

    Returns:
        ({name: {"dtype", "shape", "data_offsets"}}, offset of the data in bytes).
    """
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size


class MappedWeights:
    """The tensors of safetensors files, read from disk when they are touched.

    A tensor serves as the weight of a model only where its bytes are those that the model has, so
    the names in a file need not be trusted. The kernel may drop the pages at any time, and
    ``rest`` drops them at once: a frozen model then needs memory only while it works.

    Args:
        files: safetensors files; what is none, or cannot be read, is left out.
    """

    def __init__(self, files: Iterable[str | Path]) -> None:
        self._maps: list[tuple[mmap.mmap, int, tuple[int, ...]]] = []
        self._tensors: dict[str, Tensor] = {}
        self._awake = False
        for path in files:
            try:
                self._add(Path(path))
            except (OSError, ValueError) as error:
                log.debug("%s is not mapped: %s", path, error)

    def _add(self, path: Path) -> None:
        if path.suffix != ".safetensors":
            return
        header, start = header_of(path)
        handle = os.open(path, os.O_RDONLY)
        mapped = mmap.mmap(handle, 0, access=mmap.ACCESS_COPY)
        self._maps.append((mapped, handle, _state(handle)))
        for name, entry in header.items():
            dtype, begin = DTYPES.get(entry["dtype"]), start + entry["data_offsets"][0]
            count = torch.Size(entry["shape"]).numel()
            if dtype is None or begin % dtype.itemsize or count == 0:
                continue
            tensor = torch.frombuffer(mapped, dtype=dtype, count=count, offset=begin)
            self._tensors[name] = tensor.view(entry["shape"])

    def replacements(self, model: nn.Module) -> dict[int, nn.Parameter]:
        """Mapped stand-ins by ``id`` of the parameter, for those with the same bytes in a file."""
        found = {}
        for name, weight in model.named_parameters():
            bare = name.split(".", 1)[-1]  # files of bare base models leave the first part out
            tensor = self._tensors.get(name, self._tensors.get(bare))
            if tensor is not None and weight.device.type == "cpu" and _same(weight, tensor):
                found[id(weight)] = nn.Parameter(tensor, requires_grad=False)
        self.rest()
        return found

    def wake(self) -> None:
        """Make room for large weights that will be read; the files must be as they were.

        Raises:
            RuntimeError: somebody has written to one.
        """
        for _, handle, state in self._maps:
            if _state(handle) != state:
                raise RuntimeError(
                    "the weights of the reference are read from the model's file, and that file "
                    "was changed during the run; restore it and go on from the last checkpoint"
                )

        if not self._awake and sum(len(m) for m, _, _ in self._maps) > LARGE:
            give_back_freed_memory()
        self._awake = True

    def rest(self) -> None:
        """Give the memory of what was read back; it is read again when it is touched."""
        self._awake = False
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped, _, _ in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Forget the files; tensors that are in use stay valid."""
        for _, handle, _ in self._maps:
            os.close(handle)
        self._maps, self._tensors = [], {}

    def __del__(self) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> MappedWeights:
        return self  # nobody writes to it


def _same(weight: Tensor, tensor: Tensor) -> bool:
    return (
        weight.dtype == tensor.dtype
        and weight.shape == tensor.shape
        and all(torch.equal(a, b) for a, b in _slices(weight, tensor))
    )


def _slices(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A few MB at a time, so that a comparison of large tensors stops early."""
    flat = [t.detach().reshape(-1) for t in tensors]
    for start in range(0, len(flat[0]), 1 << 22):
        yield tuple(t[start : start + (1 << 22)] for t in flat)


def _state(handle: int) -> tuple[int, ...]:
    status = os.fstat(handle)
    return status.st_mtime_ns, status.st_size
