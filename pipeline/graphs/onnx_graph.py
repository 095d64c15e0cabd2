"""Exports a saved classifier to fp32 ONNX and checks the graph.

Inputs are int64 `input_ids`, `attention_mask` and maybe `token_type_ids`, (batch, sequence); the output is float32
`logits`, (batch, outputs).
"""

import importlib.util
import inspect
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import onnx
import torch
import transformers
from onnx import TensorProto, helper
from transformers import PreTrainedModel

from kdc.common.errors import InputError, KdcError
from kdc.pipeline.graphs.nodes import nested_graphs
from kdc.pipeline.models.opening import open_classifier

Exporter = Literal["auto", "optimum", "torch"]

INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
_OPTIMUM_OPSET = 18


def export_onnx(
    model_dir: Path, out_file: Path, *, exporter: Exporter = "auto", token_type_ids: bool = True
) -> Literal["optimum", "torch"]:
    """Export with dynamic axes; return the exporter used.

    Args:
        exporter: "auto" is torch if onnxscript is installed, else Optimum.
        token_type_ids: make them an input, if the model uses them.

    Raises:
        InputError: the exporter is not installed.
        KdcError: the exporter failed, or `check_axes` refuses the graph.
    """
    used = choose_exporter(exporter)
    model = load_classifier(model_dir)
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
    typed = token_type_ids and takes_types and getattr(model.config, "type_vocab_size", 2) > 1
    export = _export_with_optimum if used == "optimum" else _export_with_torch
    with tempfile.TemporaryDirectory(dir=out_file.parent) as scratch:
        try:
            with quiet():
                export(model, Path(scratch) / "model.onnx", typed)
            graph = onnx.load(Path(scratch) / "model.onnx")
        except Exception as error:  # exporters raise any kind
            other = "torch" if used == "optimum" else "optimum"
            raise KdcError(
                f"the {used} exporter failed on {model.config.model_type}",
                given=f"{type(error).__name__}: {error}",
                remedy=f"try `--set export.exporter={other}`"
                + " (`pip install '.[compress,optimum]'`)" * (other == "optimum"),
            ) from error
    _normalise(graph, typed)
    save_graph(graph, out_file)
    check_axes(out_file)
    return used


def graph_inputs(path: Path) -> tuple[str, ...]:
    present = {value.name for value in onnx.load(path, load_external_data=False).graph.input}
    return tuple(name for name in INPUT_NAMES if name in present)


def check_axes(path: Path) -> None:
    """KdcError for wrong names, types or fixed axes."""
    graph = onnx.load(path, load_external_data=False).graph
    inputs, outputs = ([value.name for value in values] for values in (graph.input, graph.output))
    problems = [f"no input {name}" for name in INPUT_NAMES[:2] if name not in inputs]
    problems += [f"unknown input {name}" for name in inputs if name not in INPUT_NAMES]
    if outputs != ["logits"]:
        problems.append(f"outputs {outputs} instead of logits alone")
    for value in graph.input:
        problems += _axis_problems(value, TensorProto.INT64, dynamic=(0, 1))
    for value in graph.output:
        problems += _axis_problems(value, TensorProto.FLOAT, dynamic=(0,))
    if problems:
        raise KdcError("the exported graph has the wrong form", given="; ".join(problems))


def save_graph(graph: onnx.ModelProto, path: Path) -> None:
    """Write one file; KdcError if it exceeds ONNX's limit of 2 GB."""
    if graph.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        raise KdcError("the model is too large for one ONNX file", given=f"{graph.ByteSize()} bytes, the limit is 2 GB")
    # Older runtimes refuse the exporters' newest version.
    oldest = helper.find_min_ir_version_for(graph.opset_import, ignore_unknown=True)
    graph.ir_version = min(graph.ir_version, oldest)
    onnx.save(graph, path)


def versions_of(path: Path) -> tuple[int, int]:
    """Operator and format versions."""
    graph = onnx.load(path, load_external_data=False)
    return next(opset.version for opset in graph.opset_import if opset.domain in ("", "ai.onnx")), graph.ir_version


def load_classifier(model_dir: Path) -> PreTrainedModel:
    # Every architecture has eager attention.
    return open_classifier(model_dir, attn_implementation="eager", local_files_only=True).float().eval()


def choose_exporter(exporter: Exporter) -> Literal["optimum", "torch"]:
    """InputError if not installed."""
    if exporter != "optimum" and _is_installed("onnxscript"):
        return "torch"
    if exporter != "torch" and _is_installed("optimum.exporters.onnx") and transformers.__version__.startswith("4."):
        return "optimum"
    raise InputError(
        "the exporter is not installed",
        given=exporter,
        remedy="`pip install onnxscript` for torch's; in kdc's folder `pip install '.[compress,optimum]'` for "
        "Optimum's, which needs transformers 4.57 and brings it",
    )


def _export_with_optimum(model: PreTrainedModel, file: Path, typed: bool) -> None:
    """Optimum always adds BERT's token types; `_normalise` removes them."""
    from optimum.exporters.onnx import export
    from optimum.exporters.tasks import TasksManager

    # Optimum does not know kdc's classes.
    architecture = TasksManager.get_exporter_config_constructor(
        "onnx",
        task="text-classification",
        model_type=model.config.model_type.replace("_", "-"),
        library_name="transformers",
    )
    options = architecture(model.config, task="text-classification")
    export(model, options, file, opset=_OPTIMUM_OPSET, do_constant_folding=True)


class _LogitsOnly(torch.nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits


def _export_with_torch(model: PreTrainedModel, file: Path, typed: bool) -> None:
    # torch.export fixes sizes 0 and 1, and without padding traces a branch for a mask of ones.
    ids = torch.full((2, 7), (model.config.pad_token_id or 0) + 1, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    inputs = (ids, mask, torch.zeros_like(ids)) if typed else (ids, mask)
    dynamic = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    torch.onnx.export(
        _LogitsOnly(model),
        inputs,
        str(file),
        input_names=list(INPUT_NAMES[: len(inputs)]),
        output_names=["logits"],
        dynamic_shapes=tuple(dynamic for _ in inputs),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _normalise(model: onnx.ModelProto, typed: bool) -> None:
    graph = model.graph
    if not typed:
        _fill_token_types_with_zeros(graph)
    _inline_aliases(graph)
    for number, node in enumerate(graph.node):
        node.name = node.name or f"node_{number}"
    for values, names in ((graph.input, ("batch", "sequence")), (graph.output, ("batch",))):
        for value in values:
            for axis, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
                if axis.dim_param:
                    axis.dim_param = name
    # These hold old axis names, and stack traces with paths.
    del graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


def _fill_token_types_with_zeros(graph: onnx.GraphProto) -> None:
    others = [value for value in graph.input if value.name != "token_type_ids"]
    if len(others) == len(graph.input):
        return
    del graph.input[:]
    graph.input.extend(others)
    graph.node.insert(0, helper.make_node("Sub", ["input_ids", "input_ids"], ["token_type_ids"], name="no_token_types"))


def _inline_aliases(graph: onnx.GraphProto) -> None:
    """Optimum's Identity nodes hide shared weights from quantisers."""
    constants = {tensor.name for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    aliases: dict[str, str] = {}
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if node.op_type == "Identity" and node.input[0] in constants and node.output[0] not in outputs:
            aliases[node.output[0]] = node.input[0]
            del graph.node[index]
    for part in nested_graphs(graph):
        for node in part.node:
            for index, name in enumerate(node.input):
                node.input[index] = aliases.get(name, name)


def _axis_problems(value: onnx.ValueInfoProto, element_type: int, dynamic: tuple[int, ...]) -> list[str]:
    tensor = value.type.tensor_type
    problems = []
    if tensor.elem_type != element_type:
        problems.append(f"{value.name} is {TensorProto.DataType.Name(tensor.elem_type)}")
    for axis in dynamic:
        if len(tensor.shape.dim) <= axis or not tensor.shape.dim[axis].dim_param:
            problems.append(f"axis {axis} of {value.name} is not dynamic")
    return problems


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


@contextmanager
def quiet() -> Iterator[None]:
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
