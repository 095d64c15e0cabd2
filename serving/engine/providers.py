"""Opens an ONNX Runtime session on the device that was asked for, proves by a run that it is in use, checks its graph.

Reads the ONNX file. A session runs on an execution provider: CPU, CUDA or TensorRT. ONNX Runtime is imported where a
session is opened, so that the process which only starts the workers of a service does not load it.
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
# For each device: its execution provider, its usual name, and what to do when it does not take effect.
_GPU: dict[str, tuple[str, str, str]] = {
    "cuda": (CUDA_PROVIDER, "CUDA", _CUDA_REMEDY),
    "tensorrt": (TENSORRT_PROVIDER, "TensorRT", f"`pip install tensorrt`, or use `--device cuda`; {_CUDA_REMEDY}"),
}


@dataclass(frozen=True)
class OpenSession:
    """A session, and on what it runs."""

    session: onnxruntime.InferenceSession
    path: Path  # the ONNX file
    content: bytes  # as it was read
    provider: str  # the execution provider that took effect
    threads: int  # size of its thread pool
    notes: tuple[str, ...]  # what a person should know, such as a fallback to the CPU


def read_graph(path: Path) -> bytes:
    """Read an ONNX file that no manifest names.

    Raises:
        KdcError: there is none.
    """
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
    """Open the ONNX file of the provider that takes effect.

    Args:
        file_for: returns the ONNX file for an execution provider (fp16 is for CUDA and TensorRT, int8 for the CPU).
        device: "auto" tries CUDA and falls back to the CPU with a note; "cuda" and "tensorrt" do not fall back; "cpu".
        threads: threads of one forward pass; None takes all usable cores.
        plan_memory: on the CPU, let ONNX Runtime keep a memory plan for each input shape that it has met. Single rows
            then take 6 % less time; batches, which rarely have the same shape twice, take 4 % more (on QNLI rows).
        read: reads the file, all of whose weights are inside. The session does not keep what it returns.

    Raises:
        InputError: there is no such device.
        KdcError: a device that was asked for by name did not take effect, or the file cannot be loaded.
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
    """The device that a provider is asked for by."""
    return {TENSORRT_PROVIDER: "tensorrt", CUDA_PROVIDER: "cuda"}.get(provider, "cpu")  # type: ignore[return-value]


def check_graph(session: onnxruntime.InferenceSession, task: TaskInfo, info: TokenizerInfo) -> None:
    """Check that a graph takes what the tokenizer feeds, and gives what the task needs.

    Raises:
        KdcError: it does not.
    """
    inputs = {value.name for value in session.get_inputs()}
    if inputs != set(info.input_names):
        given = f"graph {sorted(inputs)}, tokenizer {sorted(info.input_names)}"
        raise _unusable("the graph's inputs are not those that the tokenizer feeds", given)
    outputs = {value.name: value.shape for value in session.get_outputs()}
    width = (outputs.get("logits") or [None])[-1]
    if "logits" not in outputs or (isinstance(width, int) and width != task.outputs):
        given = f"graph {outputs}, the task needs logits of width {task.outputs}"
        raise _unusable("the graph's outputs do not fit the task", given)


def run_bound(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """Run a batch with IO binding: each input is copied to the device once, and only the logits are copied back.

    Takes the inputs by name, each int64 (rows, longest); returns the logits, (rows, outputs).
    """
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_cpu_input(name, value)
    binding.bind_output("logits", "cpu")
    session.run_with_iobinding(binding)
    return np.asarray(binding.get_outputs()[0].numpy())


def _obstacle(provider: str) -> str:
    """Why the provider cannot be tried, "" if it can. Also loads the CUDA libraries that pip has installed."""
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        return f"this onnxruntime has no {provider} (the package that has it is onnxruntime-gpu)"
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver"
    onnxruntime.preload_dlls()  # has an effect only before the first session
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
    # Idle threads that spin for long take the core that reads and answers requests; threads that never spin wake late.
    # Measured with one connection: 1.03 ms a request with 500 us of spinning, 1.19 with 100 us, 1.03 with 2000 us.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "500")
    # Not ONNX Runtime's own format, which the checks of an artifact's graphs do not read.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Weights in another file would be looked for in the working directory.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    providers = list(dict.fromkeys([*providers, CPU_PROVIDER]))  # without doublets
    try:
        session = onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions share no narrower public base
        raise _unusable("ONNX Runtime cannot load the model", f"{path}: {error}") from error
    session._model_bytes = None  # it would keep them as long as it lives, to start anew on another provider
    return session


def _why_not_on(session: onnxruntime.InferenceSession, provider: str) -> str:
    """Why the session does not run on `provider`, "" if it does. ONNX Runtime falls back without an error."""
    actual = session.get_providers()[0]
    if actual != provider:
        return f"ONNX Runtime could not start {provider} and fell back to {actual}"
    try:
        session.run(None, {value.name: np.ones((1, 3), dtype=np.int64) for value in session.get_inputs()})
    except Exception as error:  # noqa: BLE001 - a missing cuDNN or an old GPU shows only here; the caller reports it
        return f"{provider} started, but its first run failed: {error}"
    return ""
