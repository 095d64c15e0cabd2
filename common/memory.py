"""The most memory that this process held."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path


def own_peak_memory_bytes() -> int:
    """Most resident memory of this process since `reset_peak_memory`, or since its start; 0 where nobody knows."""
    # `getrusage` would also count the parent's memory at the moment of the fork.
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
    """Start `own_peak_memory_bytes` anew, where the system lets us; elsewhere it stays the process's maximum."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
