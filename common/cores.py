"""How many cores this process may really use: the machine's, its affinity's, its container's quota."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path, PurePosixPath


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: the least of the machine, its affinity and its cgroup's quota.

    ONNX Runtime sizes its pool to the host's cores, which throttles a container that may use fewer. A part of a core
    is rounded down; at least 1.

    Args:
        root: where `/proc` and `/sys` are found.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    return max(1, min([cores, *(int(quota) for quota in _cgroup_quotas(root))]))


def _cgroup_quotas(root: Path) -> list[float]:
    """CPU quotas, in cores, of this process's cgroup and of the groups above it. Versions 1 and 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not on macOS and Windows
        return []
    quotas = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 2 has no controllers here and one tree; version 1 mounts its CPU tree as "cpu" or "cpu,cpuacct".
        for tree in {"cpu", controllers} if controllers else {""}:
            mount = root / "sys/fs/cgroup" / tree
            for level in (PurePosixPath(group), *PurePosixPath(group).parents):
                # A file that is missing or says "max" sets no limit.
                with contextlib.suppress(OSError, ValueError):
                    quotas.append(_read_quota(mount / str(level).lstrip("/"), version=1 if controllers else 2))
    return [quota for quota in quotas if quota > 0]


def _read_quota(folder: Path, *, version: int) -> float:
    """Cores; negative where version 1 says unlimited. ValueError where version 2 does ("max")."""
    if version == 2:
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
    else:
        quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8")
        period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8")
    return int(quota) / int(period)
