"""How well a graph's matrix products use the CPU."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime

from kdc.artifact.manifest import CPU_PROVIDER, TokenizerInfo
from kdc.common.pace import seconds_of
from kdc.serving.engine.long_texts import Encoded, spread
from kdc.serving.engine.passes import PASS_TOKENS
from kdc.serving.engine.providers import SLOW_ON_CPU
from kdc.serving.engine.tokenizing import pad

# Rows of a large square product for one thread; 1,024 are no faster (Intel Xeon with AVX-512 VNNI).
_SIZE = 768
_CALLS = 6
_INT8 = ("DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm", "QLinearMatMul")
_FP32 = ("FusedGemm", "FusedMatMul", "Gemm", "MatMul")
_PRODUCTS = dict.fromkeys(_INT8, "int8") | dict.fromkeys(_FP32, "fp32")


def share_of_products(file: Path, feeds: dict[str, np.ndarray], *, threads: int) -> float:
    """Time of a pass's products at a large product's speed, as a share of the fastest of six passes."""
    events = node_events(file, feeds, threads=threads, calls=_CALLS)
    seconds = np.reshape([event["dur"] for event in events], (_CALLS, -1)).sum(axis=1).min() / 1e6
    return seconds_alone(operations(file, feeds), threads) / float(seconds)


def served_pass(rows: Sequence[Encoded], info: TokenizerInfo, *, threads: int) -> dict[str, np.ndarray]:
    """Inputs of an engine's first pass over `rows`."""
    parts, _ = spread(rows)
    fitting = PASS_TOKENS * threads // max(map(len, parts))
    return pad(parts[: max(1, fitting)], info)


def seconds_alone(done: dict[str, int], threads: int) -> float:
    return sum(count / speed(number_format, threads) for number_format, count in done.items())


def operations(file: Path, feeds: dict[str, np.ndarray]) -> dict[str, int]:
    """Operations of a pass's matrix products, by number format."""
    counts: Counter[str] = Counter()
    for node in (event["args"] for event in node_events(file, feeds) if event["args"]["op_name"] in _PRODUCTS):
        # Each output element takes two operations per column of the left operand.
        (left,), (output,) = (node[f"{side}_type_shape"][0].values() for side in ("input", "output"))
        counts[_PRODUCTS[node["op_name"]]] += 2 * math.prod(output) * left[-1]
    return dict(counts)


def node_events(file: Path, feeds: dict[str, np.ndarray], *, threads: int = 0, calls: int = 1) -> list[dict[str, Any]]:
    """Profile each node in each call, with the optimisers of the serving engine."""
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
    """Operations a second of a large product, in the fastest call."""
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
