"""The memory of this process: its peak, and what the C library keeps of it."""

import contextlib
import ctypes
import sys
from pathlib import Path

_M_ARENA_MAX, _HEAPS = -8, 2  # of glibc's mallopt


def own_peak_memory_bytes() -> int:
    """The most resident memory of this process since `reset_peak_memory` or its start; 0 where that is unknown."""
    # `getrusage` alone would also count the parent's memory at the moment of the fork.
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> None:
    """Begin a new peak, on systems that allow it; on others the peak remains that of the whole process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def release_free_memory() -> None:
    """Give freed memory back to the system, if the C library is glibc. It keeps hundreds of megabytes of models
    that were closed, since each thread that loads one has a pool of its own."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def share_heaps() -> None:
    """Have threads share two heaps, if the C library is glibc. It gives each thread a heap of its own, which keeps what
    it took: hundreds of megabytes after large requests."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _HEAPS)
