"""What share of the machine a model uses: the operations of its matrix products, and the most that this machine does.

Reads an ONNX file, runs it once under ONNX Runtime's profiler, and multiplies two matrices.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime

from kdc.common.timing import seconds_of

# With one thread of an Intel Xeon with AVX-512 VNNI 256 rows reach two thirds of what 768 reach, and 1,024 no more.
_SIZE = 768
_CALLS = 6
_PRODUCTS = (
    "DynamicQuantizeMatMul",
    "FusedGemm",
    "FusedMatMul",
    "Gemm",
    "MatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QGemm",
    "QLinearMatMul",
)
FORMATS = ("fp32", "int8")  # of which a CPU's peak can be measured


def operations(path: Path, feeds: dict[str, np.ndarray]) -> int:
    """How many operations the matrix products of one pass take; a multiplication and an addition are two.

    Args:
        path: the ONNX file.
        feeds: a batch by the names of the inputs, int64 (rows, tokens) each.
    """
    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "pass")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return sum(_operations_of(event["args"]) for event in events if event.get("args", {}).get("op_name") in _PRODUCTS)


def _operations_of(node: dict[str, Any]) -> int:
    """Of one product: for each element of the output as many multiplications and additions as the left operand has
    columns."""
    ((left, *_), (output, *_)) = (
        [shape for each in node[f"{side}_type_shape"] for shape in each.values()] for side in ("input", "output")
    )
    return 2 * math.prod(output) * left[-1]


def product(number_format: str, threads: int) -> Callable[[], float]:
    """A product of two matrices, as ONNX Runtime multiplies by constant weights.

    Args:
        number_format: one of `FORMATS`.
        threads: of one product.

    Returns:
        A function that measures it: operations a second, the most of several products.

    Raises:
        ModuleNotFoundError: the package onnx, which comes with the compress extra, is not installed.
    """
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    shape = (_SIZE, _SIZE)
    if number_format == "int8":
        kind, types = "MatMulInteger", (TensorProto.UINT8, TensorProto.INT32)
        left, right = random.integers(0, 255, shape, dtype=np.uint8), random.integers(-127, 127, shape, dtype=np.int8)
    else:
        kind, types = "MatMul", (TensorProto.FLOAT, TensorProto.FLOAT)
        left, right = random.random(shape, dtype=np.float32), random.random(shape, dtype=np.float32)
    ends = [helper.make_tensor_value_info(name, each, shape) for name, each in zip(("left", "out"), types, strict=True)]
    graph = helper.make_graph(
        [helper.make_node(kind, ["left", "right"], ["out"])],
        "product",
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def measure() -> float:
        seconds = min(seconds_of(lambda: session.run(None, {"left": left})) for _ in range(_CALLS))
        return 2 * _SIZE**3 / seconds

    return measure
