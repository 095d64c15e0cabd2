"""The Open Inference Protocol V2 under `/v2`, in JSON and in tritonclient's binary form.

Outputs: `label` (BYTES [N]) and `probabilities` (FP32 [N, outputs]; a regression's numbers).
"""

import itertools
import struct
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from pydantic import Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from kdc.common.version import __version__
from kdc.serving.engine.engine import Text
from kdc.serving.http.api.inference import Wanted, ask, model_named, require_ready
from kdc.serving.http.api.request_body import (
    Otherwise,
    Part,
    checked,
    decode_in_turn,
    in_a_list,
    read_bytes,
    within_limits,
)
from kdc.serving.http.model import Model
from kdc.serving.http.replies import ApiError, JsonResponse, written
from kdc.serving.http.settings import ServeSettings

_HEADER = "inference-header-content-length"
_NO_LENGTH = "Inference-Header-Content-Length is not a length within the body"
_OUTPUTS = ("label", "probabilities")
_MOST_ID = 256  # characters; the reply repeats it
SCORE_BYTES = 24  # per JSON score
_ANY_VERSION = "1"  # for clients that must name a version


_Values = Annotated[list[str], Field(fail_fast=True)]
_Value = Annotated[str | _Values, Otherwise("Input should be a text or a list of texts")]
_Name = Annotated[Literal["text", "text_pair"], Otherwise("Input should be `text` or `text_pair`")]


class Tensor(Part):
    """An input: its values are `data`, or `parameters.binary_data_size` bytes after the JSON."""

    name: _Name
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=2)]
    datatype: Literal["BYTES"]
    data: Annotated[list[_Value], Field(fail_fast=True)] | None = None
    parameters: dict[str, Any] | None = None


class Output(Part):
    """A requested output, as raw bytes if `parameters.binary_data` is true."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(Part):
    """The JSON part of an inference request."""

    inputs: Annotated[list[Tensor], Field(min_length=1, fail_fast=True)]
    outputs: Annotated[list[Output], Field(fail_fast=True)] | None = None
    id: Annotated[Any, WithJsonSchema({"type": "string"})] = None
    parameters: dict[str, Any] | None = None


async def server_metadata(_: Request) -> Response:
    """The server's name and extensions."""
    return JsonResponse({"name": "kdc", "version": __version__, "extensions": ["binary_tensor_data"]})


async def live(_: Request) -> Response:
    """Whether the process lives."""
    return JsonResponse({"live": True})


async def ready(request: Request) -> Response:
    """Whether requests are taken."""
    require_ready(request)
    return JsonResponse({"ready": True})


async def model_ready(request: Request) -> Response:
    """Whether the model takes requests."""
    model = _model(request)
    require_ready(request)
    return JsonResponse({"name": model.name, "ready": True})


async def model_metadata(request: Request) -> Response:
    """The model's inputs and outputs."""
    return JsonResponse(described(_model(request)))


def described(model: Model) -> dict[str, Any]:
    task = model.engine.task
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [-1, 2] if task.is_pair else [-1]}]
    outputs = [{"name": "probabilities", "datatype": "FP32", "shape": [-1, task.outputs]}]
    if task.labels:
        outputs.insert(0, {"name": "label", "datatype": "BYTES", "shape": [-1]})
    return {
        "name": model.name,
        "versions": [model.artifact],
        "platform": "onnxruntime_onnx",
        "inputs": inputs,
        "outputs": outputs,
    }


async def infer(request: Request) -> Response:
    """Open Inference Protocol V2. BYTES input `text` of shape [N] or [N, 1]; pairs [N, 2], or `text` and `text_pair`.
    Binary tensors follow the JSON, whose length is in Inference-Header-Content-Length."""
    _model(request)  # 404 before the body is read
    body, rows = await _read(request)
    model = _model(request)  # again: a reload may have replaced it
    outputs, request_id = requested_outputs(body, has_labels=bool(model.engine.labels)), id_of(body.id)
    del body  # frees it while the request waits
    is_binary = outputs.get("probabilities")
    wanted = Wanted(top_k=1)
    if is_binary is not None:
        wanted = Wanted(score_bytes=4 if is_binary else SCORE_BYTES)
    answer = await ask(request, model, rows, wanted)
    return await _reply(model, outputs, request_id, answer.probabilities)


def _model(request: Request) -> Model:
    return model_of(request, request.path_params["name"], request.path_params.get("version", ""))


def model_of(request: Request, name: str, version: str) -> Model:
    """The model, if it has this version. "" and "1" match any."""
    model = model_named(request, name)
    if version not in ("", _ANY_VERSION, model.artifact):
        raise ApiError(404, f"there is no such version; it serves {model.artifact}, which also answers to 1")
    return model


async def _read(request: Request) -> tuple[InferRequest, list[Text]]:
    length = request.headers.get(_HEADER)
    if length is not None and not (length.isascii() and length.isdigit() and len(length) <= 10):
        raise ApiError(400, _NO_LENGTH)
    content = await read_bytes(request, None if length is None else int(length))
    size = len(content) if length is None else int(length)
    if size > len(content):
        raise ApiError(400, _NO_LENGTH)
    body = checked(InferRequest, await decode_in_turn(request, content[:size]))
    return body, read_rows(body, content[size:], request.app.state.settings)


def id_of(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    if len(value) > _MOST_ID:
        raise ApiError(422, f"`id` is too long; given: {len(value)} characters; send at most {_MOST_ID}")
    return value


def read_rows(body: InferRequest, tail: bytes, settings: ServeSettings) -> list[Text]:
    """Read the rows. `tail` holds the binary tensors."""
    columns: dict[str, list[list[str]]] = {}
    start = 0
    for tensor in body.inputs:
        if tensor.name in columns:
            raise ApiError(422, f"the input `{tensor.name}` is there twice")
        size = (tensor.parameters or {}).get("binary_data_size")
        values: Iterable[str]
        if size is None:
            values = itertools.chain.from_iterable(map(in_a_list, tensor.data or ()))
        elif type(size) is int and 0 <= size <= len(tail) - start:
            values = _read_bytes_tensor(tail[start : start + size])
            start += size
        else:
            raise ApiError(422, "binary_data_size is not within the body")
        columns[tensor.name] = _shaped(_within(values, settings), tensor.shape)
    if start != len(tail):
        raise ApiError(422, "the body has bytes that no input names")
    if "text" not in columns:
        raise ApiError(422, "there is no input `text`")
    rows = columns["text"]
    if "text_pair" in columns:
        others = columns["text_pair"]
        if len(others) != len(rows) or any(len(row) != 1 for row in (*rows, *others)):
            raise ApiError(422, "`text` and `text_pair` are not of the same shape [N]")
        rows = [[first[0], second[0]] for first, second in zip(rows, others, strict=True)]
    return within_limits(rows, settings)


def _shaped(values: list[str], shape: list[int]) -> list[list[str]]:
    count, width = shape[0], shape[1] if len(shape) == 2 else 1
    if width > 2 or count * width != len(values):
        raise ApiError(422, f"an input has {len(values)} elements, unlike its shape; send [N], [N, 1] or [N, 2]")
    return [values[start : start + width] for start in range(0, len(values), width)]


def _within(values: Iterable[str], settings: ServeSettings) -> list[str]:
    most = 2 * settings.max_texts  # two for pairs
    read = list(itertools.islice(values, most + 1))
    if len(read) > most:
        raise ApiError(422, f"too many texts; at most {settings.max_texts} texts or pairs a request")
    return read


def _read_bytes_tensor(raw: bytes) -> Iterator[str]:
    """Each element is a little-endian uint32 length, then UTF-8."""
    end = 0
    while end < len(raw):
        start = end + 4
        end = start + int.from_bytes(raw[end:start], "little")
        if end > len(raw):
            raise ApiError(422, "a BYTES tensor ends within an element")
        try:
            value = raw[start:end].decode()
        except UnicodeDecodeError:
            raise ApiError(422, "a text is not valid UTF-8") from None
        yield value


async def _reply(
    model: Model, requested: dict[str, bool], request_id: str | None, probabilities: np.ndarray
) -> Response:
    outputs: list[dict[str, Any]] = []
    tail = []
    for name, is_binary in requested.items():
        described, values = output(model, name, probabilities)
        if is_binary:
            tail.append(raw(values))
            described["parameters"] = {"binary_data_size": len(tail[-1])}
        elif isinstance(values, list):
            described["data"] = values
        else:
            described["data"] = orjson.Fragment(
                await written(values.shape, lambda rows: probabilities[rows].ravel().tolist())
            )
        outputs.append(described)
    body: dict[str, Any] = {"model_name": model.name, "model_version": model.artifact, "outputs": outputs}
    if request_id is not None:
        body["id"] = request_id
    if not tail:
        return JsonResponse(body)
    head = orjson.dumps(body)
    return Response(
        head + b"".join(tail),
        media_type="application/octet-stream",
        headers={"Inference-Header-Content-Length": str(len(head))},
    )


def requested_outputs(body: InferRequest, *, has_labels: bool) -> dict[str, bool]:
    """The requested outputs (default: all), and whether each is raw."""
    known = _OUTPUTS if has_labels else _OUTPUTS[1:]
    by_default = _flag(body.parameters, "binary_data_output")
    if not body.outputs:
        return dict.fromkeys(known, by_default)
    outputs = {output.name: _flag(output.parameters, "binary_data", by_default) for output in body.outputs}
    if not outputs.keys() <= set(known):
        raise ApiError(422, f"`outputs` names something else than {', '.join(known)}")
    if len(outputs) < len(body.outputs):  # repeats would multiply the reply
        raise ApiError(422, "`outputs` names an output twice")
    return outputs


def _flag(parameters: dict[str, Any] | None, name: str, default: bool = False) -> bool:
    return (parameters or {}).get(name, default) is True


def output(model: Model, name: str, probabilities: np.ndarray) -> tuple[dict[str, Any], np.ndarray | list[str]]:
    """Describe an output. `probabilities` are (rows, outputs)."""
    if name == "probabilities":
        return {"name": name, "datatype": "FP32", "shape": list(probabilities.shape)}, probabilities
    labels = [model.engine.labels[column] for column in probabilities.argmax(axis=1).tolist()]
    return {"name": name, "datatype": "BYTES", "shape": [len(labels)]}, labels


def raw(values: np.ndarray | list[str]) -> bytes:
    if isinstance(values, list):
        return b"".join(struct.pack("<I", len(label.encode())) + label.encode() for label in values)
    return values.astype("<f4").tobytes()
