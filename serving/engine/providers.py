"""Opens ONNX Runtime sessions, and proves that the requested device is in use.

ONNX Runtime is imported late: the workers' parent needs none.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdc.artifact.manifest import CPU_PROVIDER, CUDA_PROVIDER, TENSORRT_PROVIDER, Device, TaskInfo, TokenizerInfo
from kdc.common.cores import usable_cores
from kdc.common.errors import InputError, KdcError

if TYPE_CHECKING:
    import onnxruntime

_CUDA_REMEDY = (
    "see `kdc doctor`; the libraries come with `pip install 'onnxruntime-gpu[cuda,cudnn]'`; or use `--device cpu`"
)
_GPU: dict[str, tuple[str, str, str]] = {
    "cuda": (CUDA_PROVIDER, "CUDA", _CUDA_REMEDY),
    "tensorrt": (TENSORRT_PROVIDER, "TensorRT", f"`pip install tensorrt`, or use `--device cuda`; {_CUDA_REMEDY}"),
}

# Optimisers to switch off: the fused node slows int8 passes by 8 to 18 %.
SLOW_ON_CPU = ["SkipLayerNormFusion"]


@dataclass(frozen=True)
class OpenSession:
    session: onnxruntime.InferenceSession
    path: Path
    content: bytes
    provider: str
    threads: int
    notes: tuple[str, ...]


def read_graph(path: Path) -> bytes:
    if not path.is_file():
        raise _unusable("the ONNX file is missing", path)
    return path.read_bytes()


def _unusable(what: str, given: object) -> KdcError:
    return KdcError(what, given=given, remedy="make it again with `kdc compress`, or see `kdc doctor`")


def open_session(
    file_for: Callable[[str], Path],
    *,
    device: Device,
    threads: int | None = None,
    plan_memory: bool = True,
    read: Callable[[Path], bytes] = read_graph,
) -> OpenSession:
    """Open the ONNX file for the provider that starts.

    Args:
        plan_memory: keep a memory plan per input shape. On a CPU, single rows take 6 % less time, batches 4 % more.
        read: reads the file, which must hold all weights.
    """
    if device not in ("auto", "cpu", *_GPU):
        raise InputError("no such device", given=device, remedy="choose auto, cpu, cuda or tensorrt")
    threads = threads or usable_cores()
    notes: tuple[str, ...] = ()
    if device != "cpu":
        provider, name, remedy = _GPU["cuda" if device == "auto" else device]
        problem = _obstacle(provider)
        if not problem:
            path = file_for(provider)
            content = read(path)
            session = _create(path, content, [provider, CUDA_PROVIDER], threads)
            problem = _why_not_on(session, provider)
            if not problem:
                return OpenSession(session, path, content, provider, threads, notes)
        if device != "auto":
            raise KdcError(f"{name} did not take effect", given=problem, remedy=remedy)
        notes = (f"running on the CPU: {problem}",)
    path = file_for(CPU_PROVIDER)
    content = read(path)
    session = _create(path, content, [CPU_PROVIDER], threads, plan_memory=plan_memory)
    return OpenSession(session, path, content, CPU_PROVIDER, threads, notes)


def device_of(provider: str) -> Device:
    return {TENSORRT_PROVIDER: "tensorrt", CUDA_PROVIDER: "cuda"}.get(provider, "cpu")  # type: ignore[return-value]


def check_graph(session: onnxruntime.InferenceSession, task: TaskInfo, info: TokenizerInfo) -> None:
    inputs = {value.name for value in session.get_inputs()}
    if inputs != set(info.input_names):
        given = f"graph {sorted(inputs)}, tokenizer {sorted(info.input_names)}"
        raise _unusable("the graph's inputs do not fit the tokenizer", given)
    outputs = {value.name: value.shape for value in session.get_outputs()}
    width = (outputs.get("logits") or [None])[-1]
    if "logits" not in outputs or (isinstance(width, int) and width != task.outputs):
        given = f"graph {outputs}, the task needs logits of width {task.outputs}"
        raise _unusable("the graph's outputs do not fit the task", given)


def run_bound(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """IO binding copies inputs to the device once. `feeds`: int64 (rows, longest) by input name."""
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_cpu_input(name, value)
    binding.bind_output("logits", "cpu")
    session.run_with_iobinding(binding)
    return np.asarray(binding.get_outputs()[0].numpy())


def _obstacle(provider: str) -> str:
    """Why the provider cannot be tried, or "". Also loads pip's CUDA libraries."""
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        return f"this onnxruntime has no {provider} (the package that has it is onnxruntime-gpu)"
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver"
    onnxruntime.preload_dlls()  # works only before the first session
    return ""


def _create(
    path: Path, content: bytes, providers: list[str], threads: int, *, plan_memory: bool = True
) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = plan_memory
    # Threads that spin long take the core that answers requests; threads that never spin wake late.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "500")
    # Refuse ONNX Runtime's own format, which our checks cannot read.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # External weights could come from the working directory.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    slow = SLOW_ON_CPU if providers == [CPU_PROVIDER] else None
    providers = list(dict.fromkeys([*providers, CPU_PROVIDER]))
    try:
        session = onnxruntime.InferenceSession(content, options, providers=providers, disabled_optimizers=slow)
    except Exception as error:
        raise _unusable("ONNX Runtime cannot load the model", f"{path}: {error}") from error
    session._model_bytes = None  # ONNX Runtime keeps them to restart on another provider
    return session


def _why_not_on(session: onnxruntime.InferenceSession, provider: str) -> str:
    """Why the session is elsewhere, or "". ONNX Runtime falls back without an error."""
    actual = session.get_providers()[0]
    if actual != provider:
        return f"ONNX Runtime could not start {provider} and fell back to {actual}"
    try:
        session.run(None, {value.name: np.ones((1, 3), dtype=np.int64) for value in session.get_inputs()})
    except Exception as error:  # noqa: BLE001 - a missing cuDNN or an old GPU shows only here; the caller reports it
        return f"{provider} started, but its first run failed: {error}"
    return ""
