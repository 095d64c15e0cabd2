import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from kdc.common.cores import cgroup_folders, usable_cores
from kdc.common.frozen import Frozen

# Our name -> /proc/cpuinfo's.
_X86 = {name: name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")}
_ARM = {"asimd": "asimd", "dotprod": "asimddp", "i8mm": "i8mm"}
_INT8_PRODUCTS = ("avx512_vnni", "avx_vnni", "amx_int8", "dotprod", "i8mm")
_SMI_TIMEOUT_S = 15


class Cpu(Frozen):
    model: str
    architecture: str  # for example "x86_64"
    # For int8; None: unknown.
    instructions: dict[str, bool] | None = None

    @property
    def has_int8_products(self) -> bool | None:
        """Without int8 dot products, x86 saturates sums of 8-bit products. None: unknown."""
        if self.instructions is None:
            return None
        return any(self.instructions.get(name) for name in _INT8_PRODUCTS)


class Cores(Frozen):
    host: int | None  # None: unknown
    affinity: int | None  # None if unsupported
    usable: int  # within the container's quota


class Memory(Frozen):
    total_bytes: int  # of the machine
    limit_bytes: int | None  # None: no limit


class Nvidia(Frozen):
    driver: str | None = None  # None: no driver
    devices: tuple[str, ...] = ()  # names with memory
    detail: str = ""


def cpu(root: Path = Path("/")) -> Cpu:
    architecture, info = platform.machine(), root / "proc/cpuinfo"
    text = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    model = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    instructions = None
    if flags:
        present = set(flags.group(1).split())
        sets = _ARM if architecture.lower() in ("aarch64", "arm64") else _X86
        instructions = {name: flag in present for name, flag in sets.items()}
    name = model.group(1).strip() if model else platform.processor()
    return Cpu(model=name, architecture=architecture, instructions=instructions)


def cores() -> Cores:
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return Cores(host=os.cpu_count(), affinity=affinity, usable=usable_cores())


def memory(root: Path = Path("/")) -> Memory:
    import psutil

    total = psutil.virtual_memory().total
    limits: list[int] = []
    for folder, version in cgroup_folders("memory", root):
        # A missing file and "max" set no limit.
        with contextlib.suppress(OSError, ValueError):
            file = folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")
            limits.append(int(file.read_text(encoding="utf-8")))
    # In version 1 a huge number means no limit.
    return Memory(total_bytes=total, limit_bytes=min((limit for limit in limits if limit < total), default=None))


def versions(packages: Iterable[str]) -> dict[str, str]:
    installed = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def nvidia() -> Nvidia:
    command = shutil.which("nvidia-smi")
    if command is None:
        return Nvidia(detail="nvidia-smi is not there")
    query = [command, "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SMI_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Nvidia(detail=f"nvidia-smi failed: {error}")
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.count(",") == 2]
    if done.returncode or not rows:
        message = (done.stdout + done.stderr).strip()
        return Nvidia(detail=f"nvidia-smi failed: {message[:300]}")
    return Nvidia(driver=rows[0][0], devices=tuple(f"{name} ({size})" for _, name, size in rows))
