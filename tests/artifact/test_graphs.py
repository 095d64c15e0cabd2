"""An ONNX file that keeps weights in another file is found wherever the tensor is in the graph; `onnx` is the judge."""

from collections.abc import Callable
from pathlib import Path

import bag_models
import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from kdc.artifact.folder import describe_files, load_manifest, write_manifest
from kdc.artifact.graphs import is_self_contained
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


def _program(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("EPContext", [], ["c"], domain="com.microsoft", embed_mode=0))


@pytest.mark.parametrize(
    "place",
    [_program, _initializer, _constant, _list, _branch, _branches, _sparse, _sparse_value, _function, _training],
)
def test_a_tensor_elsewhere_is_found(tmp_path: Path, place: Callable[[ModelProto], None]) -> None:
    path = bag_models.make_graph(tmp_path / "model.onnx")
    assert is_self_contained(path.read_bytes())
    model = onnx.load(path)
    place(model)
    path.write_bytes(model.SerializeToString())
    assert not is_self_contained(path.read_bytes())


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


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


def field(number: int, content: bytes) -> bytes:
    """A field of protobuf that holds bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def group(content: bytes) -> bytes:
    """What every reader of ONNX skips: fields between the marks of a group of an unknown number."""
    return varint(100 << 3 | 3) + content + varint(100 << 3 | 4)


_JUNK = b"\xff" * 20
_UNUSED = helper.make_node("Identity", ["last"], ["unused"]).SerializeToString()


@pytest.mark.parametrize(
    "hiding",
    [
        group(field(7, _JUNK)),
        field(7, group(field(1, _JUNK))),
        field(7, field(1, _UNUSED + group(field(5, _JUNK)))),
        field(20, group(field(1, _JUNK))),
    ],
    ids=["model", "graph", "node", "training"],
)
def test_what_the_runtime_skips_does_not_hide_a_tensor_elsewhere(tmp_path: Path, hiding: bytes) -> None:
    path = bag_models.make_graph(tmp_path / "model.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=200)
    path.write_bytes(path.read_bytes() + hiding)
    feeds = {"input_ids": np.array([[4, 5]]), "attention_mask": np.ones((1, 2), np.int64)}

    def answer() -> np.ndarray:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)[0]

    before = answer()
    (tmp_path / "weights.bin").write_bytes(bytes((tmp_path / "weights.bin").stat().st_size))
    assert (answer() != before).all()
    assert not is_self_contained(path.read_bytes())


def is_elsewhere(message: Message) -> bool:
    """Whether a tensor anywhere in a message keeps its numbers in another file, as the onnx package reads it."""
    if isinstance(message, TensorProto) and onnx.external_data_helper.uses_external_data(message):
        return True
    values = (value for about, value in message.ListFields() if about.message_type is not None)
    return any(is_elsewhere(each) for value in values for each in ([value] if isinstance(value, Message) else value))


_NUMBERS = st.sampled_from([0, 1, 2, 1 << 31, 1 << 32, (1 << 32) + 1, (1 << 63) + 1])
_UNKNOWN = st.sampled_from([100, (1 << 29) - 1])
_ODDITY = st.one_of(
    st.builds(lambda number, value: varint(number << 3) + varint(value), _UNKNOWN, _NUMBERS),
    st.builds(lambda number: varint(number << 3 | 1) + bytes(8), _UNKNOWN),
    st.builds(field, _UNKNOWN, st.sampled_from([b"", _JUNK, b"\x70\x01"])),
    st.builds(group, st.builds(field, st.integers(1, 30), st.sampled_from([b"", _JUNK, b"\x70\x01"]))),
)
_ODDITIES = st.lists(_ODDITY, max_size=2).map(b"".join)


@st.composite
def leading_to_a_tensor(draw: st.DrawFn, kind: Descriptor = ModelProto.DESCRIPTOR, depth: int = 0) -> bytes:
    """A message as a hostile writer may encode it: a way to a tensor, between what readers skip."""
    if kind is TensorProto.DESCRIPTOR:
        core = varint(14 << 3 | draw(st.sampled_from([0, 1 << 32]))) + varint(draw(_NUMBERS))
    else:
        steps = [about for about in kind.fields if about.message_type is not None and about.message_type in _LEADS]
        at_once = [about for about in steps if about.message_type is TensorProto.DESCRIPTOR]
        about = draw(st.sampled_from(at_once if at_once and depth > 5 else steps))
        core = field(about.number, draw(leading_to_a_tensor(about.message_type, depth + 1)))
    return draw(_ODDITIES) + core + draw(_ODDITIES)


_LEADS = [
    kind.DESCRIPTOR
    for kind in (
        onnx.TrainingInfoProto,
        onnx.FunctionProto,
        onnx.GraphProto,
        onnx.NodeProto,
        onnx.AttributeProto,
        onnx.SparseTensorProto,
        onnx.TensorProto,
    )
]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_what_onnx_reads_as_elsewhere_is_never_taken_for_self_contained(data: st.DataObject) -> None:
    """Would catch any way of writing a file that onnx reads and the check does not. Of files without oddities the check
    says what onnx says."""
    content = data.draw(leading_to_a_tensor())
    content = content[: data.draw(st.sampled_from([None, None, None, -1]))]
    try:
        model = ModelProto.FromString(content)
    except DecodeError:
        return  # nobody reads it
    if is_elsewhere(model):
        assert not is_self_contained(content)
    model.DiscardUnknownFields()
    assert is_self_contained(model.SerializeToString()) is not is_elsewhere(model)


def test_a_file_of_millions_of_fields_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_self_contained(b"\x08\x01" * 2000)
    monkeypatch.setattr("kdc.artifact.graphs._MOST_FIELDS", 1000)
    assert not is_self_contained(b"\x08\x01" * 2000)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 40,
        b"weights" * 100,
        b"\x3a\xff\xff\xff\xff\x0f",
        b"\x00\x00",
        b"\x0a",
        b"\xa2\x06\x05ab",  # three bytes short
        group(b""),
        # A tensor's location: of a tag beyond 32 bits ONNX Runtime reads the lower ones. The onnx package refuses it.
        field(7, field(5, varint((1 << 32) + (14 << 3)) + b"\x01")),
    ],
)
def test_what_is_no_onnx_file_is_refused(content: bytes) -> None:
    assert not is_self_contained(content)


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
