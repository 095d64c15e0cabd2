"""Removes work from an exported graph, such as building the mask by 25 nodes. Its logits stay equal.

Since exporters change their code, a few batches show what tensors hold.
"""

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from kdc.pipeline.graphs.first_token import keep_first_tokens
from kdc.pipeline.graphs.nodes import attribute, float_matrices, names_read, replace_nodes
from kdc.pipeline.graphs.parity import Feeds
from kdc.serving.engine.providers import open_session

_HIDDEN = -1e9  # added to the scores of padded tokens
_HIDES = -1e4  # what exporters add is at most this

_SIZES = ((2, 3), (3, 5))  # rows and tokens of made-up batches
# Tokens of the longest batch. Longer rows take gigabytes, and keep their mask.
_LONGEST = 512
_NARROW = 4  # most columns of a matrix

Values = dict[str, list[np.ndarray]]  # of a tensor, in each batch


def simplify(onnx_path: Path, *, pad_id: int, max_length: int) -> ModelProto:
    """`max_length`: of rows, in tokens."""
    model = onnx.load(onnx_path)
    batches = [_made_up(rows, tokens, pad_id) for rows, tokens in (*_SIZES, (5, max(6, min(max_length, _LONGEST))))]
    graph = model.graph
    _store_constants(graph)
    by_text, by_mask = _depend_on(graph, ("input_ids", "token_type_ids")), _depend_on(graph, ("attention_mask",))
    computed = {name for node in graph.node for name in node.output} - by_text
    masks = {name for node in _softmax_sums(graph) for name in node.input} & computed & by_mask
    reshapes = [node for node in graph.node if node.op_type == "Reshape" and node.input[1] in computed - by_mask]
    tables = float_matrices(graph)
    lookups = [
        node
        for node in graph.node
        if node.op_type == "Gather" and node.input[0] in tables and node.input[1] in computed - by_mask
    ]
    wanted = {node.input[1] for node in (*reshapes, *lookups)} | masks
    values = _values(model, sorted(wanted), sorted({node.input[0] for node in reshapes}), batches)
    masked = [feeds["attention_mask"] for feeds in batches]
    _fix_shapes(graph, reshapes, values)
    _shorten_lookups(graph, lookups, values)
    if max_length <= _LONGEST:
        _shorten_masks(graph, {name for name in masks if _hides_padding(values[name], masked)})
    _look_up_products(graph)
    _drop_unread(graph)
    keep_first_tokens(model)
    return model


def _made_up(rows: int, tokens: int, pad_id: int) -> Feeds:
    mask = np.ones((rows, tokens), dtype=np.int64)
    mask[1:, tokens // 2 :] = 0
    ids = np.where(mask == 1, 1 if pad_id == 0 else 0, pad_id)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}


def _store_constants(graph: GraphProto) -> None:
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            graph.initializer.add().CopyFrom(node.attribute[0].t)
            graph.initializer[-1].name = node.output[0]
        else:
            nodes.append(node)
    replace_nodes(graph, nodes)


def _depend_on(graph: GraphProto, inputs: Collection[str]) -> set[str]:
    """Tensors that depend on inputs' values, not only their shapes."""
    names = set(inputs)
    for node in graph.node:
        if node.op_type not in ("Shape", "Size") and not names.isdisjoint(names_read(node)):
            names.update(node.output)
    return names


def _softmax_sums(graph: GraphProto) -> list[NodeProto]:
    makers = {name: node for node in graph.node for name in node.output}
    sums = [makers.get(node.input[0]) for node in graph.node if node.op_type == "Softmax"]
    return [node for node in sums if node is not None and node.op_type == "Add"]


def _values(model: ModelProto, names: Sequence[str], sized: Sequence[str], batches: Sequence[Feeds]) -> Values:
    watched = ModelProto()
    watched.CopyFrom(model)
    watched.graph.node.extend(helper.make_node("Shape", [name], [f"{name}_shape"]) for name in sized)
    outputs = [*names, *(f"{name}_shape" for name in sized)]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    inputs = [value.name for value in model.graph.input]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "watched.onnx"
        onnx.save(watched, file)
        session = open_session(lambda _: file, device="cpu").session
    runs = [session.run(outputs, {name: feeds[name] for name in inputs}) if outputs else [] for feeds in batches]
    return {name: [run[index] for run in runs] for index, name in enumerate(outputs)}


def _hides_padding(values: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> bool:
    """Windowed and causal attention hide more than padding."""
    for value, mask in zip(values, masks, strict=True):
        if value.ndim != 4 or value.shape[0] != len(mask) or value.shape[-1] != mask.shape[1]:
            return False
        kept = np.broadcast_to(mask[:, None, None, :] == 1, value.shape)
        if value[kept].any() or (value[~kept] > _HIDES).any():
            return False
    return True


def _shorten_masks(graph: GraphProto, masks: set[str]) -> None:
    if not masks:
        return
    constants = {"one": np.float32(1), "hidden": np.float32(_HIDDEN), "axes": np.array([1, 2])}
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), f"mask_{name}") for name, value in constants.items()
    )
    steps = (
        helper.make_node("Cast", ["attention_mask"], ["mask_kept"], name="mask_cast", to=onnx.TensorProto.FLOAT),
        helper.make_node("Sub", ["mask_one", "mask_kept"], ["mask_padded"], name="mask_sub"),
        helper.make_node("Mul", ["mask_padded", "mask_hidden"], ["mask_flat"], name="mask_mul"),
        helper.make_node("Unsqueeze", ["mask_flat", "mask_axes"], ["mask_added"], name="mask_unsqueeze"),
    )
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = "mask_added" if name in masks else name
    replace_nodes(graph, [*steps, *graph.node])


def _fix_shapes(graph: GraphProto, reshapes: Sequence[NodeProto], values: Values) -> None:
    """Let Reshape copy the batch and the sequence from its input."""
    for node in reshapes:
        shapes, before = np.stack(values[node.input[1]]), np.stack(values[f"{node.input[0]}_shape"])
        same = np.arange(shapes.shape[1]) < before.shape[1]
        same[same] = [(shapes[:, axis] == before[:, axis]).all() for axis in np.flatnonzero(same)]
        fixed = (shapes == shapes[0]).all(axis=0)
        if (same | fixed).all() and (fixed | (shapes[0] != 0)).all():
            name = f"{node.name}_shape"
            shape = np.where(fixed, shapes[0], 0)
            graph.initializer.append(numpy_helper.from_array(shape, name))
            node.input[1] = name
            del node.attribute[:]  # `allowzero`


def _shorten_lookups(graph: GraphProto, lookups: Sequence[NodeProto], values: Values) -> None:
    """Replace lookups of one token type by its row, and of positions by the table's first rows."""
    tables, read_by = float_matrices(graph), dict[str, list[str]]()
    for node in graph.node:
        for name in node.input:
            read_by.setdefault(name, []).append(node.op_type)
    steps: dict[str, list[NodeProto]] = {}
    for node in lookups:
        indices, name = values[node.input[1]], node.output[0]
        if attribute(node, "axis", 0) or read_by[name] != ["Add"]:
            continue
        types = np.unique(np.concatenate([each.ravel() for each in indices]))
        if len(types) == 1:
            row = numpy_helper.to_array(tables[node.input[0]])[types[0]]
            graph.initializer.append(numpy_helper.from_array(row, name))
            steps[node.name] = []
            continue
        counted = all(np.array_equal(each, np.arange(each.size).reshape(each.shape)) for each in indices)
        flat = all(each.size == each.shape[-1] for each in indices) and len({each.size for each in indices}) > 1
        if not (counted and flat):
            continue
        graph.initializer.extend(
            numpy_helper.from_array(np.array([value]), f"{name}_{part}") for part, value in (("first", 0), ("axis", 0))
        )
        steps[node.name] = [
            helper.make_node("Shape", ["input_ids"], [f"{name}_count"], name=f"{name}_shape", start=1, end=2),
            helper.make_node(
                "Slice", [node.input[0], f"{name}_first", f"{name}_count", f"{name}_axis"], [name], name=node.name
            ),
        ]
    if steps:
        replace_nodes(graph, [new for node in graph.node for new in steps.get(node.name, [node])])


def _look_up_products(graph: GraphProto) -> None:
    """Multiply a table with a narrow matrix once, and look up the product."""
    tables = float_matrices(graph)
    lookups = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "Gather" and node.input[0] in tables and attribute(node, "axis", 0) == 0
    }
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[0] not in lookups or node.input[1] not in tables:
            continue
        lookup, matrix = lookups[node.input[0]], tables[node.input[1]]
        if matrix.dims[1] > _NARROW:
            continue
        product = numpy_helper.to_array(tables[lookup.input[0]]) @ numpy_helper.to_array(matrix)
        graph.initializer.append(numpy_helper.from_array(product, f"{node.name}_table"))
        looked_up = helper.make_node("Gather", [f"{node.name}_table", lookup.input[1]], node.output, name=node.name)
        node.CopyFrom(looked_up)


def _drop_unread(graph: GraphProto) -> None:
    read = {value.name for value in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if not read.isdisjoint(node.output):
            kept.append(node)
            read |= names_read(node)
    replace_nodes(graph, kept[::-1])
