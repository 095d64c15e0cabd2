"""What this machine is: its CPU and the instructions that matter for int8, cores, memory, NVIDIA driver.

Reads: `/proc`, the cgroup's memory limit, `nvidia-smi`, `sysctl` on macOS.
Writes: nothing.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from kdc.common.cores import usable_cores

# Our name -> the name in /proc/cpuinfo. AVX2 alone saturates in int8 products where the VNNI instructions do not.
_X86 = {name: name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")}
_ARM = {"asimd": "asimd", "dotprod": "asimddp", "i8mm": "i8mm"}
_MACOS = {
    "asimd": "hw.optional.AdvSIMD",
    "dotprod": "hw.optional.arm.FEAT_DotProd",
    "i8mm": "hw.optional.arm.FEAT_I8MM",
    "avx2": "hw.optional.avx2_0",
    "avx512f": "hw.optional.avx512f",
}
_SMI_TIMEOUT_S = 15


def cpu(root: Path = Path("/")) -> dict[str, Any]:
    """Model, architecture and int8-relevant instructions.

    Args:
        root: where `/proc` is found.

    Returns:
        `model`, `architecture`, and `instructions` {name: present}, which is None where it cannot be known.
    """
    architecture = platform.machine()
    found: dict[str, Any] = {"model": platform.processor(), "architecture": architecture, "instructions": None}
    info = root / "proc/cpuinfo"
    if info.is_file():
        text = info.read_text(encoding="utf-8", errors="replace")
        model = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
        flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
        wanted = _ARM if architecture.lower() in ("aarch64", "arm64") else _X86
        if model:
            found["model"] = model.group(1).strip()
        if flags:
            present = set(flags.group(1).split())
            found["instructions"] = {name: flag in present for name, flag in wanted.items()}
    elif platform.system() == "Darwin":
        found["model"] = _sysctl("machdep.cpu.brand_string") or found["model"]
        values = {name: _sysctl(key) for name, key in _MACOS.items()}
        found["instructions"] = {name: value == "1" for name, value in values.items() if value}
    return found


def cores() -> dict[str, Any]:
    """Cores of the host, those that this process may be put on, and those that it may really use (the quota).

    Returns:
        `host`, `affinity` (None where the system knows no such thing), `usable`.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {"host": os.cpu_count(), "affinity": affinity, "usable": usable_cores()}


def memory(root: Path = Path("/")) -> dict[str, int | None]:
    """The machine's memory and the cgroup's limit, in bytes; None where unknown or unlimited.

    Args:
        root: where `/proc` and `/sys` are found.
    """
    total = None
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not on Windows
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [limit for limit in _memory_limits(root) if total is None or limit < total]
    return {"total_bytes": total, "limit_bytes": min(limits, default=None)}


def _memory_limits(root: Path) -> list[int]:
    """Limits of this process's cgroup and of the groups above it. Versions 1 and 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not on macOS and Windows
        return []
    limits = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        tree, name = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
        for level in (PurePosixPath(group), *PurePosixPath(group).parents):
            file = root / "sys/fs/cgroup" / tree / str(level).lstrip("/") / name
            with contextlib.suppress(OSError, ValueError):  # a file that is missing or says "max" sets no limit
                limits.append(int(file.read_text(encoding="utf-8")))
    return limits


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def nvidia() -> dict[str, Any]:
    """The NVIDIA driver and its devices.

    Returns:
        `driver` (version, None without one), `devices` (names with their memory), `detail` (why there is none).
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return {"driver": None, "devices": [], "detail": "nvidia-smi is not there"}
    query = [command, "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SMI_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"driver": None, "devices": [], "detail": f"nvidia-smi failed: {error}"}
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.count(",") == 2]
    if done.returncode or not rows:
        words = (done.stdout + done.stderr).strip()
        return {"driver": None, "devices": [], "detail": f"nvidia-smi failed: {words[:300]}"}
    return {"driver": rows[0][0], "devices": [f"{name} ({size})" for _, name, size in rows], "detail": ""}


def _sysctl(key: str) -> str:
    """A value of macOS's sysctl; "" where there is no such key."""
    done = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, timeout=5)
    return done.stdout.strip()
