"""How much memory this process may use: machine, control groups, device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

__all__ = ["available_bytes", "resident_bytes"]

CGROUP = Path("/sys/fs/cgroup")
PROC = Path("/proc")


def resident_bytes() -> int:
    """What this process holds now; 0 where the system does not say."""
    try:
        lines = (PROC / "self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    found = [int(x.split()[1]) * 1024 for x in lines if x.startswith("VmRSS")]
    return found[0] if found else 0


def available_bytes(device: torch.device) -> int | None:
    """What this process may use, with what it holds already; None where nobody says.

    Args:
        device: where the model trains. On a CPU the least of what the machine has free and of
            what each control group (container, job) leaves; on CUDA what the device has free.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [x for x in (_machine(), *_groups()) if x is not None]
    return min(free) + resident_bytes() if free else None


def _machine() -> int | None:
    try:
        lines = (PROC / "meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable")]
    return found[0] if found else None


def _groups() -> Iterator[int]:
    """Memory that each control group above this process leaves, files that can go counted as free.

    Version 2 has one tree, version 1 one for memory; limits of parents bind too.
    """
    try:
        lines = (PROC / "self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, kinds, path = line.split(":", 2)
        if number == "0":
            root, names = CGROUP, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            root = CGROUP / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        here = root / path.lstrip("/")
        for folder in (here, *here.parents):
            if (left := _left(folder, *names)) is not None:
                yield left
            if folder == root:
                break


def _left(folder: Path, limit_name: str, used_name: str, idle_name: str) -> int | None:
    try:
        limit = int((folder / limit_name).read_text())  # "max" is no number
        used = int((folder / used_name).read_text())
        stat = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    idle = [int(x.split()[1]) for x in stat if x.startswith(f"{idle_name} ")]
    return max(limit - used + sum(idle), 0)
