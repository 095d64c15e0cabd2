"""The report of `kdc doctor`, as JSON or text."""

from typing import Literal

from pydantic import Field

from kdc.common.frozen import Frozen
from kdc.common.machine import Cores, Cpu, Memory, Nvidia


class Provider(Frozen):
    """An execution provider; `reason` says why it does not start."""

    name: str
    starts: bool
    reason: str = ""


class Torch(Frozen):
    """PyTorch's CUDA version ("" for CPUs), and its devices."""

    cuda_build: str = ""
    cuda: bool = False
    devices: tuple[str, ...] = ()
    # training steps a second on the CPU; empty with a GPU
    training: dict[str, float] = Field(default_factory=dict)
    words: str = ""
    error: str = ""


class Hub(Frozen):
    """The hub's address, and whether it answers; None if not asked."""

    endpoint: str
    reachable: bool | None
    detail: str


class Minilm(Frozen):
    """Source of the minilm teacher: the package, or the hub."""

    usable: bool
    from_package: bool
    detail: str


class Advice(Frozen):
    """A problem makes something fail; a note makes it work less well."""

    level: Literal["problem", "note"]
    what: str
    remedy: str


class Report(Frozen):
    """This machine and this install."""

    kdc: str | None  # None if not installed
    python: str
    system: str  # operating system and architecture
    # as from `installed_packages`
    packages: dict[str, dict[str, str | None]]
    providers: tuple[Provider, ...]
    torch: Torch | None  # None if not installed
    nvidia: Nvidia
    cpu: Cpu
    cores: Cores
    memory: Memory
    hub: Hub
    minilm: Minilm
    advice: tuple[Advice, ...] = ()  # problems first


def render(report: Report) -> str:
    lines = [
        f"kdc {report.kdc or '(not installed)'}, Python {report.python}, {report.system}",
        *_packages(report.packages),
        *_devices(report),
        *_machine(report),
        "",
    ]
    for advice in report.advice:
        lines += [f"{advice.level}: {advice.what}", f"  -> {advice.remedy}"]
    if not any(advice.level == "problem" for advice in report.advice):
        lines.append("no problems found")
    return "\n".join(lines)


def _packages(packages: dict[str, dict[str, str | None]]) -> list[str]:
    lines = []
    for extra, versions in packages.items():
        have = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        absent = ", ".join(name for name, version in versions.items() if version is None)
        parts = [have, f"not installed: {absent}" if absent else ""]
        lines.append(f"{f'[{extra}]' if extra else 'base'}: {'; '.join(filter(None, parts))}")
    return lines


def _devices(report: Report) -> list[str]:
    torch, nvidia = report.torch, report.nvidia
    lines = [f"{one.name}: {'starts' if one.starts else f'does not start: {one.reason}'}" for one in report.providers]
    if torch is None or torch.error:
        lines.append(f"PyTorch: {'not installed' if torch is None else f'broken: {torch.error}'}")
    else:
        build = f"for CUDA {torch.cuda_build}" if torch.cuda_build else "for CPUs only"
        lines.append(f"PyTorch: built {build}, {'sees a GPU' if torch.cuda else 'sees no GPU'}")
    if torch is not None and torch.training:
        speeds = sorted(torch.training.items(), key=lambda item: -item[1])
        fastest_first = "; ".join(f"{name}: {speed:g}" for name, speed in speeds)
        lines.append(f"training on the CPU, steps of a layer a second: {fastest_first}")
    gpu = f"driver {nvidia.driver}, {', '.join(nvidia.devices)}" if nvidia.driver else nvidia.detail
    return [*lines, f"NVIDIA: {gpu}"]


def _machine(report: Report) -> list[str]:
    cpu, cores, memory, hub = report.cpu, report.cores, report.memory, report.hub
    instructions = "unknown"
    if cpu.instructions is not None:
        instructions = " ".join(name for name, present in cpu.instructions.items() if present) or "none"
    affinity = "unknown" if cores.affinity is None else cores.affinity
    reach = {True: "reachable", False: "not reachable", None: "not known"}[hub.reachable]
    return [
        f"CPU: {cpu.model or 'unknown'} ({cpu.architecture}); instructions for int8: {instructions}",
        f"cores: {cores.host} in the machine, {affinity} by affinity, {cores.usable} usable under the quota",
        f"memory: {_gib(memory.total_bytes, 'unknown')}, the container's limit: {_gib(memory.limit_bytes, 'none')}",
        f"hub: {hub.endpoint} {reach} ({hub.detail})",
        f"all-MiniLM-L6-v2: {report.minilm.detail}",
    ]


def _gib(size: int | None, if_none: str) -> str:
    return if_none if size is None else f"{size / 1024**3:.1f} GiB"
