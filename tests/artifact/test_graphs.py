"""An ONNX file that keeps weights in another file is found wherever the tensor is in the graph; `onnx` is the judge."""

from collections.abc import Callable
from pathlib import Path

import bag_models
import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from kdc.artifact.folder import describe_files, load_manifest, write_manifest
from kdc.artifact.graphs import has_external_data
from kdc.common.errors import KdcError


def tensor(name: str = "there") -> TensorProto:
    made = numpy_helper.from_array(np.zeros(4, np.float32), name)
    made.data_location = TensorProto.EXTERNAL
    onnx.external_data_helper.set_external_data(made, location="weights.bin")
    made.ClearField("raw_data")
    return made


def constant(node: NodeProto | None = None) -> NodeProto:
    return helper.make_node("Constant", [], ["c"], value=tensor())


def inner(value: object) -> AttributeProto:
    return helper.make_attribute("then_branch", value)


def _initializer(model: ModelProto) -> None:
    model.graph.initializer.append(tensor())


def _constant(model: ModelProto) -> None:
    model.graph.node.append(constant())


def _list(model: ModelProto) -> None:
    model.graph.node[0].attribute.append(inner([tensor()]))


def _branch(model: ModelProto) -> None:
    model.graph.node[0].attribute.append(inner(helper.make_graph([constant()], "inside", [], [])))


def _branches(model: ModelProto) -> None:
    model.graph.node[0].attribute.append(inner([helper.make_graph([], "inside", [], [], [tensor()])]))


def _sparse(model: ModelProto) -> None:
    indices = numpy_helper.from_array(np.arange(4), "at")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor(), indices, [9]))


def _sparse_value(model: ModelProto) -> None:
    attribute = AttributeProto(name="sparse_value", type=AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.values.CopyFrom(tensor())
    model.graph.node[0].attribute.append(attribute)


def _function(model: ModelProto) -> None:
    model.functions.append(helper.make_function("own", "f", [], ["c"], [constant()], []))


def _training(model: ModelProto) -> None:
    model.training_info.add().initialization.initializer.append(tensor())


@pytest.mark.parametrize(
    "place", [_initializer, _constant, _list, _branch, _branches, _sparse, _sparse_value, _function, _training]
)
def test_a_tensor_elsewhere_is_found(tmp_path: Path, place: Callable[[ModelProto], None]) -> None:
    path = bag_models.make_graph(tmp_path / "model.onnx")
    assert not has_external_data(path)
    model = onnx.load(path)
    place(model)
    path.write_bytes(model.SerializeToString())
    assert has_external_data(path)


def test_every_field_of_onnx_that_leads_to_a_tensor_is_followed() -> None:
    from kdc.artifact.graphs import _PARTS

    names = {
        "ModelProto": "model",
        "TrainingInfoProto": "training",
        "FunctionProto": "function",
        "GraphProto": "graph",
        "NodeProto": "node",
        "AttributeProto": "attribute",
        "SparseTensorProto": "sparse",
        "TensorProto": "tensor",
    }
    expected: dict[str, dict[int, str]] = {name: {} for name in names.values()}
    for message, name in names.items():
        for field in getattr(onnx, message).DESCRIPTOR.fields:
            if field.message_type is not None and field.message_type.name in names:
                expected[name][field.number] = names[field.message_type.name]
    assert expected == _PARTS


def test_a_tag_beyond_32_bits_is_read_as_the_runtime_reads_it(tmp_path: Path) -> None:
    path = bag_models.make_graph(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.initializer.append(tensor())
    plain = model.SerializeToString()
    assert plain.count(b"\x70\x01") == 1  # field 14 of the one tensor: its location is external
    grown = len(b"\xf0\x80\x80\x80\x10") - 1
    # The lengths around a message that grows have to be written anew: the tensor goes into a second part of the graph.
    made = tensor().SerializeToString().replace(b"\x70\x01", b"\xf0\x80\x80\x80\x10\x01")
    assert len(made) == len(tensor().SerializeToString()) + grown
    inside = b"\x2a" + bytes([len(made)]) + made
    path.write_bytes(path.read_bytes() + b"\x3a" + bytes([len(inside)]) + inside)
    assert has_external_data(path)


def test_a_file_of_millions_of_fields_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x01" * 4_000_000)
    assert has_external_data(tmp_path / "model.onnx")


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"weights" * 100, b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 10**6])
def test_what_is_no_onnx_file_is_left_to_the_runtime(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert not has_external_data(tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["model.onnx", "model.bin"])
def test_an_artifact_with_weights_elsewhere_is_refused_though_all_hashes_match(tmp_path: Path, name: str) -> None:
    folder = bag_models.write_artifact(tmp_path / "artifact")
    manifest = load_manifest(folder)
    path = folder / name
    model = onnx.load(folder / manifest.variants["fp32"].file)
    variants = manifest.variants | {"fp32": manifest.variants["fp32"].model_copy(update={"file": name})}
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    files = manifest.files | describe_files(folder, [path.name])
    with pytest.raises(KdcError, match="keeps weights in another file"):
        write_manifest(folder, manifest.model_copy(update={"files": files, "variants": variants}))
