"""The share of the CPU's peak that a model reaches: the time of its matrix products at the speed of a large product,
divided by the time of a pass."""

import json
import math
from collections import Counter
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime

from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import CPU_PROVIDER
from kdc.common.pace import seconds_of
from kdc.serving.engine.long_texts import Tokens
from kdc.serving.engine.providers import SLOW_ON_CPU
from kdc.serving.engine.tokenizing import pad
from kdc.tools.bench.result import Loaded

# Rows of a square product for one thread; 1,024 are no faster (Intel Xeon with AVX-512 VNNI).
_SIZE = 768
_CALLS = 6
_INT8 = ("DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm", "QLinearMatMul")
_FP32 = ("FusedGemm", "FusedMatMul", "Gemm", "MatMul")
_PRODUCTS = dict.fromkeys(_INT8, "int8") | dict.fromkeys(_FP32, "fp32")

Share = Callable[[int, int, float], float | None]


def peak_share(folder: Path, loaded: Loaded) -> Share | None:
    """A function from rows, tokens a row and seconds of a pass to the share of the peak, 0 to 1.

    The function measures the peak at each call, because a busy machine slows down both. It returns None for rows in
    windows.

    Returns:
        None on a GPU, in torch, for variants other than int8 and fp32, and without the package onnx.
    """
    if loaded.on != CPU_PROVIDER or loaded.variant not in ("int8", "fp32") or find_spec("onnx") is None:
        return None
    manifest = load_manifest(folder, verify=False)
    file = folder / manifest.variants[loaded.variant].file  # type: ignore[index]

    @cache
    def count(rows: int, tokens: int) -> dict[str, int]:
        return operations(file, pad([Tokens([1] * tokens, [0] * tokens)] * rows, manifest.tokenizer))

    def share(rows: int, tokens: int, seconds: float) -> float | None:
        if tokens > manifest.tokenizer.max_length:
            return None
        at_peak = (done / speed(number_format, loaded.threads) for number_format, done in count(rows, tokens).items())
        return sum(at_peak) / seconds

    return share


def operations(file: Path, feeds: dict[str, np.ndarray]) -> dict[str, int]:
    """Operations of a pass's matrix products, by number format. An int8 graph's attention is fp32."""
    counts: Counter[str] = Counter()
    for node in (event["args"] for event in node_events(file, feeds) if event["args"]["op_name"] in _PRODUCTS):
        # Two operations per output element and column of the left operand.
        (left,), (output,) = (node[f"{side}_type_shape"][0].values() for side in ("input", "output"))
        counts[_PRODUCTS[node["op_name"]]] += 2 * math.prod(output) * left[-1]
    return dict(counts)


def node_events(file: Path, feeds: dict[str, np.ndarray], *, threads: int = 0, calls: int = 1) -> list[dict[str, Any]]:
    """What ONNX Runtime's profiler says of each node in each call, as the serving engine runs it on a CPU."""
    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "pass")
        session = onnxruntime.InferenceSession(
            str(file), options, providers=[CPU_PROVIDER], disabled_optimizers=SLOW_ON_CPU
        )
        for _ in range(calls):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return [event for event in events if event["name"].endswith("_kernel_time")]


def speed(number_format: str, threads: int) -> float:
    """Operations a second of a large product now. The fastest call counts, because other processes interrupt some."""
    session, left = _product(number_format, threads)
    seconds = min(seconds_of(lambda: session.run(None, {"left": left})) for _ in range(_CALLS))
    return 2 * left.shape[0] ** 3 / seconds


@cache
def _product(number_format: str, threads: int) -> tuple[onnxruntime.InferenceSession, np.ndarray]:
    from onnx import numpy_helper, parser

    size = round(_SIZE * math.sqrt(threads))
    random = np.random.default_rng(0)
    if number_format == "int8":
        graph = "(uint8[M, M] left) => (int32[M, M] out) { out = MatMulInteger(left, right) }"
        left = random.integers(0, 255, (size, size), dtype=np.uint8)
        right = random.integers(-127, 127, (size, size), dtype=np.int8)
    else:
        graph = "(float[M, M] left) => (float[M, M] out) { out = MatMul(left, right) }"
        left, right = random.random((2, size, size), dtype=np.float32)
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> product {graph}')
    model.graph.initializer.append(numpy_helper.from_array(right, "right"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU_PROVIDER])
    return session, left
