"""The fp16 variant of an ONNX classifier, for CUDA.

Reads the fp32 graph; writes one ONNX file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from kdc.common.errors import KdcError
from kdc.pipeline.graphs.nodes import nested_graphs
from kdc.pipeline.graphs.onnx_graph import check_axes, quiet, save_graph

# Large enough to mask, small enough that adding a score stays within fp16's 65,504.
LARGEST = 1e4
_INTEGERS = (TensorProto.INT64, TensorProto.INT32)


def to_fp16(onnx_in: Path, onnx_out: Path) -> None:
    """Convert weights and arithmetic to fp16. Inputs stay int64, `logits` float32.

    Constants beyond 1e4 are clipped to it, above all the mask's -3.4e38: as fp16 they would be minus infinity, and a
    row with padding NaN. What ends as an integer stays fp32: DeBERTa and MPNet take the logarithm of a distance to
    find its bucket, and fp16 would find a neighbouring one.

    Raises:
        KdcError: the converter failed, or left no fp16 weight.
    """
    model = onnx.load(onnx_in)
    _clip_constants(model)
    try:
        with quiet():
            converted = convert_float_to_float16(
                model,
                keep_io_types=True,
                max_finite_val=LARGEST,
                op_block_list=DEFAULT_OP_BLOCK_LIST,
                node_block_list=sorted(_integer_arithmetic(model)),
            )
    except Exception as error:  # the converter raises bare exceptions
        raise KdcError("the fp16 converter failed", given=f"{type(error).__name__}: {error}") from error
    if not any(tensor.data_type == TensorProto.FLOAT16 for tensor in converted.graph.initializer):
        raise KdcError("the fp16 graph has no fp16 weight", given=onnx_out.name)
    save_graph(converted, onnx_out)
    check_axes(onnx_out)


def _clip_constants(model: onnx.ModelProto) -> None:
    """Clip fp32 constants to what fp16 can hold, in place."""
    for graph in nested_graphs(model.graph):
        tensors = [attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t")]
        for tensor in [*graph.initializer, *tensors]:
            if tensor.data_type != TensorProto.FLOAT:
                continue
            values = onnx.numpy_helper.to_array(tensor)
            if values.size and np.abs(values).max() > LARGEST:
                clipped = np.clip(values, -LARGEST, LARGEST).astype(np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(clipped, tensor.name))


def _integer_arithmetic(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes between an integer and an integer: upstream of a Cast to integers, as far as the next one."""
    producers = {name: node for graph in nested_graphs(model.graph) for node in graph.node for name in node.output}
    found: set[str] = set()
    waiting = [node for node in producers.values() if _casts_to(node) in _INTEGERS]
    while waiting:
        node = waiting.pop()
        if node.name in found:
            continue
        found.add(node.name)
        # Before a Cast to float the numbers are integers, and what a tensor's shape is asked of does not matter.
        if _casts_to(node) != TensorProto.FLOAT and node.op_type not in ("Shape", "Size"):
            waiting += [producers[name] for name in node.input if name in producers]
    # The converter loses track of a kept node inside a branch: keep the branching node with all that is in it.
    for node in model.graph.node:
        branches = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        if any(inner.name in found for branch in branches for part in nested_graphs(branch) for inner in part.node):
            found.add(node.name)
    return found


def _casts_to(node: NodeProto) -> int | None:
    return node.attribute[0].i if node.op_type == "Cast" else None
