import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Self


def usable_cores(root: Path = Path("/")) -> int:
    """The least of affinity and control group quotas, at least 1. ONNX Runtime counts the machine's cores instead."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        cores = os.cpu_count() or 1
    limits = [cores]
    for folder, version in cgroup_folders("cpu", root):
        # A missing file, "max" and version 1's -1 set no limit.
        with contextlib.suppress(OSError, ValueError):
            names = ["cpu.max"] if version == 2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
            quota, period = " ".join((folder / name).read_text(encoding="utf-8") for name in names).split()
            if int(quota) > 0:
                limits.append(int(quota) // int(period))
    return max(1, min(limits))


def cgroup_folders(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, int]]:
    """This process's control group folders and their ancestors, whose limits hold too; none on macOS and Windows.

    Yields:
        A folder, maybe missing, and the control groups' version (1 or 2).
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Version 2 has one tree; version 1 mounts one for each controller or a few ("cpu,cpuacct").
        for tree in {controller, controllers} if controllers else {""}:
            for level in (PurePosixPath(group), *PurePosixPath(group).parents):
                yield root / "sys/fs/cgroup" / tree / str(level).lstrip("/"), 1 if controllers else 2


class Neighbours:
    """Cores that other processes and virtual machines took during a block."""

    def __enter__(self) -> Self:
        self._before = self._read()
        self._others = 0.0
        return self

    def __exit__(self, *error: object) -> None:
        began, busy, own = self._before
        ended, busy_now, own_now = self._read()
        self._others = max(0.0, (busy_now - busy - (own_now - own)) / max(ended - began, 1e-3))

    def short_of(self, threads: int) -> float:
        return max(0.0, self._others - max(0, usable_cores() - threads))

    @staticmethod
    def _read() -> tuple[float, float, float]:
        """Seconds: clock, busy cores, this process."""
        import psutil

        mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        busy = 0.0
        for core, times in enumerate(psutil.cpu_times(percpu=True)):
            if mine is None or core in mine:
                # Linux counts guests as "user" too
                idle = sum(getattr(times, name, 0.0) for name in ("idle", "iowait", "guest", "guest_nice"))
                busy += sum(times) - idle
        used = os.times()
        return time.monotonic(), busy, used.user + used.system
