"""The C library's allocator, told to keep what a training step frees."""

from __future__ import annotations

import contextlib
import ctypes
import logging

__all__ = ["give_back_freed_memory", "keep_freed_memory"]

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Serve large tensors on a CPU from memory that is kept, instead of fresh pages each time.

    glibc gives blocks above 32 MB back to the kernel whenever they are freed, and the next step
    pays for mapping them again. The command line tool calls this for runs on a CPU; call it once
    at the start of a program of your own. The process then keeps its largest size until its end.

    Returns:
        Whether the C library knows these settings; others are left as they are.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        done = (
            mallopt(M_MMAP_MAX, 0),
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1),
            mallopt(M_TOP_PAD, 256 << 20),
        )
    except (OSError, AttributeError):
        return False
    return all(done)


def give_back_freed_memory() -> None:
    """Give the kernel what is freed just now; the next step maps it again.

    For the few moments where something large is needed that a step does not need.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
