"""The report of `kdc doctor` as text for a terminal."""

from kdc.tools.doctor.report import Report


def render(report: Report) -> str:
    """The report, one fact a line, and what to do at the end."""
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
    """Installed versions, and what is missing, a line for each extra."""
    lines = []
    for extra, versions in packages.items():
        have = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        absent = ", ".join(name for name, version in versions.items() if version is None)
        parts = [have, f"not installed: {absent}" if absent else ""]
        lines.append(f"{f'[{extra}]' if extra else 'base'}: {'; '.join(filter(None, parts))}")
    return lines


def _devices(report: Report) -> list[str]:
    """ONNX Runtime's providers, PyTorch, and the GPU."""
    lines = []
    for provider in report.providers:
        state = "starts" if provider.starts else f"does not start: {provider.reason}"
        lines.append(f"{provider.name}: {state}")
    torch, nvidia = report.torch, report.nvidia
    if torch is None:
        lines.append("PyTorch: not installed")
    elif torch.error:
        lines.append(f"PyTorch: broken: {torch.error}")
    else:
        build = f"for CUDA {torch.cuda_build}" if torch.cuda_build else "for CPUs only"
        lines.append(f"PyTorch: built {build}, {'sees a GPU' if torch.cuda else 'sees no GPU'}")
    devices = ", ".join(nvidia.devices)
    lines.append(f"NVIDIA: driver {nvidia.driver}, {devices}" if nvidia.driver else f"NVIDIA: {nvidia.detail}")
    return lines


def _machine(report: Report) -> list[str]:
    """CPU, cores, memory, hub."""
    cpu, cores, memory, hub = report.cpu, report.cores, report.memory, report.hub
    instructions = "unknown"
    if cpu.instructions is not None:
        instructions = " ".join(name for name, present in cpu.instructions.items() if present) or "none"
    reach = {True: "reachable", False: "not reachable", None: "not known"}[hub.reachable]
    return [
        f"CPU: {cpu.model or 'unknown'} ({cpu.architecture}); instructions for int8: {instructions}",
        f"cores: {cores.host} in the machine, {_or_unknown(cores.affinity)} by affinity, "
        f"{_or_unknown(cores.usable)} usable under the quota",
        f"memory: {_gib(memory.total_bytes, 'unknown')}, the container's limit: {_gib(memory.limit_bytes, 'none')}",
        f"hub: {hub.endpoint} {reach} ({hub.detail})",
        f"all-MiniLM-L6-v2: {report.minilm.detail}",
    ]


def _or_unknown(value: int | None) -> str:
    return "unknown" if value is None else str(value)


def _gib(size_bytes: int | None, otherwise: str) -> str:
    return otherwise if size_bytes is None else f"{size_bytes / 1024**3:.1f} GiB"
