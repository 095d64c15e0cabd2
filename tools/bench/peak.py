"""What share of the CPU's peak a model reaches: the time that its matrix products would take at the speed of one large
product, of the time that a pass takes.

Reads an artifact. Runs its graph once under ONNX Runtime's profiler, which tells the shapes of all products.
"""

import json
import math
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime

from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import CPU_PROVIDER, TokenizerInfo
from kdc.common.pace import seconds_of
from kdc.serving.engine.long_texts import Tokens
from kdc.serving.engine.tokenizing import pad
from kdc.tools.bench.result import Loaded

# Rows and columns of the large product for one thread, of which 1,024 reach no more (Intel Xeon with AVX-512 VNNI).
_SIZE = 768
_CALLS = 6
# The kinds of nodes that multiply matrices, and in which format.
_PRODUCTS = {
    "DynamicQuantizeMatMul": "int8",
    "MatMulInteger": "int8",
    "MatMulIntegerToFloat": "int8",
    "QGemm": "int8",
    "QLinearMatMul": "int8",
    "FusedGemm": "fp32",
    "FusedMatMul": "fp32",
    "Gemm": "fp32",
    "MatMul": "fp32",
}

Share = Callable[[int, int, float], float | None]


def peak_share(folder: Path, loaded: Loaded) -> Share | None:
    """How to tell the share of the peak, 0 to 1, of passes of so many rows and tokens a row that take so many seconds;
    None of rows that are divided into windows. The peak is measured in each call, with as many threads: what slows down
    the whole machine slows down both.

    Args:
        folder: of an artifact, or of a Hugging Face model.
        loaded: what its process loaded.

    Returns:
        None where it cannot be told: on a GPU, in torch, in fp16, and without the package onnx (the compress extra).
    """
    measured = loaded.on == CPU_PROVIDER and loaded.variant in _PRODUCTS.values() and find_spec("onnx") is not None
    if not measured:
        return None
    manifest = load_manifest(folder, verify=False)
    file = folder / next(variant.file for name, variant in manifest.variants.items() if name == loaded.variant)
    count = cache(lambda rows, tokens: operations(file, _feeds(rows, tokens, manifest.tokenizer)))

    def share(rows: int, tokens: int, seconds: float) -> float | None:
        if tokens > manifest.tokenizer.max_length:
            return None
        at_peak = (done / speed(number_format, loaded.threads) for number_format, done in count(rows, tokens).items())
        return sum(at_peak) / seconds

    return share


def _feeds(rows: int, tokens: int, info: TokenizerInfo) -> dict[str, np.ndarray]:
    return pad([Tokens([1] * tokens, [0] * tokens)] * rows, info)


def operations(file: Path, feeds: dict[str, np.ndarray]) -> dict[str, int]:
    """How many operations the matrix products of one pass take, by their format; a multiplication and an addition are
    two. Of an int8 graph some are in fp32, such as those of attention.

    Args:
        file: the ONNX file.
        feeds: a batch by the names of the inputs.
    """
    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "pass")
        session = onnxruntime.InferenceSession(str(file), options, providers=[CPU_PROVIDER])
        session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    counts: dict[str, int] = {}
    for node in (event["args"] for event in events if event.get("args", {}).get("op_name") in _PRODUCTS):
        number_format = _PRODUCTS[node["op_name"]]
        counts[number_format] = counts.get(number_format, 0) + _operations_of(node)
    return counts


def _operations_of(node: dict[str, Any]) -> int:
    """Of one product: for each element of the output as many multiplications and additions as the left operand has
    columns."""
    (left, *_), (output, *_) = (
        [shape for each in node[f"{side}_type_shape"] for shape in each.values()] for side in ("input", "output")
    )
    return 2 * math.prod(output) * left[-1]


def speed(number_format: str, threads: int) -> float:
    """Operations a second of a large product with constant weights, now; the most of several. A call of it takes longer
    than most passes, so that a time slice of another process, which the median of passes skips, may hit each.

    Args:
        number_format: "int8" or "fp32".
        threads: that share one product.
    """
    session, left = _product(number_format, threads)
    seconds = min(seconds_of(lambda: session.run(None, {"left": left})) for _ in range(_CALLS))
    return 2 * left.shape[0] ** 3 / seconds


@cache
def _product(number_format: str, threads: int) -> tuple[onnxruntime.InferenceSession, np.ndarray]:
    """A session that multiplies square matrices, and its input; each thread has as many rows and columns to do."""
    from onnx import TensorProto, helper, numpy_helper

    size = round(_SIZE * math.sqrt(threads))
    random = np.random.default_rng(0)
    if number_format == "int8":
        kind, types = "MatMulInteger", (TensorProto.UINT8, TensorProto.INT32)
        left = random.integers(0, 255, (size, size), dtype=np.uint8)
        right = random.integers(-127, 127, (size, size), dtype=np.int8)
    else:
        kind, types = "MatMul", (TensorProto.FLOAT, TensorProto.FLOAT)
        left, right = random.random((2, size, size), dtype=np.float32)
    start, end = (
        helper.make_tensor_value_info(name, each, (size, size))
        for name, each in zip(("left", "out"), types, strict=True)
    )
    node = helper.make_node(kind, ["left", "right"], ["out"])
    graph = helper.make_graph([node], "product", [start], [end], [numpy_helper.from_array(right, "right")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU_PROVIDER])
    return session, left
