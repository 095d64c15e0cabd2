"""This process's memory."""

import contextlib
import ctypes
import sys
from pathlib import Path

_M_ARENA_MAX, _HEAPS = -8, 2  # of glibc's mallopt


def own_peak_memory_bytes() -> int:
    """Peak resident memory since `reset_peak_memory` or the start; 0 if unknown."""
    # `getrusage` alone includes the parent's memory at the fork.
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> None:
    """Begin a new peak, if possible."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def release_free_memory() -> None:
    """glibc only: threads' pools keep hundreds of megabytes of closed models."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def share_heaps() -> None:
    """glibc only: with a heap for each thread, hundreds of megabytes stay after large requests."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _HEAPS)
