"""The fp16 variant, for CUDA."""

from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from kdc.common.errors import KdcError
from kdc.pipeline.graphs.nodes import nested_graphs
from kdc.pipeline.graphs.onnx_graph import check_axes, quiet, save_graph

# Masks a token, and with a score stays below fp16's limit of 65,504.
LARGEST = 1e4
_INTEGERS = (TensorProto.INT64, TensorProto.INT32)


def to_fp16(onnx_in: Path, onnx_out: Path) -> None:
    """Convert weights and arithmetic to fp16. Inputs and `logits` keep their types.

    Constants are clipped to +-1e4: the attention mask's -3.4e38 would make padded rows NaN. Arithmetic that ends in an
    integer stays fp32: DeBERTa and MPNet would choose wrong buckets of distances.

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
    producers = {name: node for graph in nested_graphs(model.graph) for node in graph.node for name in node.output}
    names: set[str] = set()
    waiting = [node for node in producers.values() if _casts_to(node) in _INTEGERS]
    while waiting:
        node = waiting.pop()
        if node.name in names:
            continue
        names.add(node.name)
        # Shapes ignore values.
        if _casts_to(node) != TensorProto.FLOAT and node.op_type not in ("Shape", "Size"):
            waiting += [producers[name] for name in node.input if name in producers]
    # The converter loses excluded nodes in branches: exclude the branching node.
    for node in model.graph.node:
        branches = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        if any(inner.name in names for branch in branches for part in nested_graphs(branch) for inner in part.node):
            names.add(node.name)
    return names


def _casts_to(node: NodeProto) -> int | None:
    return node.attribute[0].i if node.op_type == "Cast" else None
