"""How many cores this process may really use, given its affinity and its container's quota."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from kdc.common.cgroups import cgroup_folders


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: the least of the machine's, its affinity's and its control groups' quotas.

    ONNX Runtime sizes its thread pool by the machine's cores, which slows down a container that may use fewer. A
    fraction of a core is rounded down, but the answer is at least 1.

    Args:
        root: where `/proc` and `/sys` are found.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # on macOS and Windows
        cores = os.cpu_count() or 1
    quotas = []
    for folder, version in cgroup_folders("cpu", root):
        # A missing file, or one that says "max", sets no limit.
        with contextlib.suppress(OSError, ValueError):
            quotas.append(_read_quota(folder, version))
    return max(1, min([cores, *(int(quota) for quota in quotas if quota > 0)]))


def _read_quota(folder: Path, version: int) -> float:
    """The quota in cores; negative where version 1 says unlimited.

    Raises:
        ValueError: version 2 says unlimited ("max").
    """
    if version == 2:
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
    else:
        quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8")
        period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8")
    return int(quota) / int(period)
