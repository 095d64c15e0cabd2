"""The Open Inference Protocol V2 over gRPC, and `grpc.health.v1.Health/Check`. Needs tritonclient, an extra.

A request with `raw_input_contents` gets raw outputs.
"""

import itertools
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from starlette.requests import Request
from starlette.responses import Response
from tritonclient.grpc import service_pb2 as messages

from kdc.common.protobuf import varint
from kdc.common.version import __version__
from kdc.serving.http.api import v2
from kdc.serving.http.api.inference import Wanted, ask
from kdc.serving.http.api.request_body import checked, read_bytes
from kdc.serving.http.replies import ApiError

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"  # `HealthCheckResponse.status`

_SCORE_BYTES = 16  # four copies of a score's four bytes
_MOST_TENSORS = 2  # as inputs, and as outputs
_OTHER_FIELDS = 512  # besides those of the texts
# Nested messages, by field.
_PARTS = {("request", 5): "tensor", ("request", 6): "output", ("tensor", 5): "contents"}
_SHAPE, _TEXTS = ("tensor", 3), ("contents", 8)
_FIXED = {1: 8, 5: 4}  # bytes of wire types; groups (3, 4) never occur

M = TypeVar("M", bound=Message)


async def health(request: Request) -> Response:
    """Clients need no token for it, so the message stays unread."""
    return Response(_SERVING if request.app.state.gate.is_ready() else _NOT_SERVING)


async def live(_: Request) -> Response:
    return _reply(messages.ServerLiveResponse(live=True))


async def ready(request: Request) -> Response:
    return _reply(messages.ServerReadyResponse(ready=request.app.state.gate.is_ready()))


async def server_metadata(_: Request) -> Response:
    return _reply(messages.ServerMetadataResponse(name="kdc", version=__version__))


async def model_ready(request: Request) -> Response:
    message = await _read(request, messages.ModelReadyRequest)
    v2.model_of(request, message.name, message.version)
    return _reply(messages.ModelReadyResponse(ready=request.app.state.gate.is_ready()))


async def model_metadata(request: Request) -> Response:
    message = await _read(request, messages.ModelMetadataRequest)
    model = v2.model_of(request, message.name, message.version)
    return _reply(messages.ModelMetadataResponse(**v2.described(model)))


async def infer(request: Request) -> Response:
    message = await _read(request, messages.ModelInferRequest)
    model = v2.model_of(request, message.model_name, message.model_version)
    settings = request.app.state.settings
    inputs = _inputs(message, 2 * settings.max_texts)
    body = checked(
        v2.InferRequest, {"inputs": inputs, "outputs": [{"name": output.name} for output in message.outputs]}
    )
    rows = v2.read_rows(body, b"".join(message.raw_input_contents), settings)
    requested = v2.requested_outputs(body, has_labels=bool(model.engine.labels))
    request_id, is_raw = v2.id_of(message.id), bool(message.raw_input_contents)
    del message, body, inputs  # frees them while the request waits
    wanted = Wanted(score_bytes=_SCORE_BYTES) if "probabilities" in requested else Wanted(top_k=1)
    answer = await ask(request, model, rows, wanted)
    reply = messages.ModelInferResponse(model_name=model.name, model_version=model.artifact, id=request_id)
    for name in requested:
        described, values = v2.output(model, name, answer.probabilities)
        tensor = reply.outputs.add(**described)
        if is_raw:
            reply.raw_output_contents.append(v2.raw(values))
        elif isinstance(values, list):
            tensor.contents.bytes_contents.extend(label.encode() for label in values)
        else:
            tensor.contents.fp32_contents.extend(values.ravel().tolist())
    return _reply(reply)


METHODS = {
    f"/{HEALTH}/Check": health,
    f"/{SERVICE}/ServerLive": live,
    f"/{SERVICE}/ServerReady": ready,
    f"/{SERVICE}/ServerMetadata": server_metadata,
    f"/{SERVICE}/ModelReady": model_ready,
    f"/{SERVICE}/ModelMetadata": model_metadata,
    f"/{SERVICE}/ModelInfer": infer,
}


async def _read(request: Request, kind: type[M]) -> M:
    body = await read_bytes(request, json_bytes=0)
    try:
        if kind is messages.ModelInferRequest:
            _require_few_fields(body, request.app.state.settings.max_texts)
        return kind.FromString(body)
    except (DecodeError, IndexError, KeyError):
        raise ApiError(400, f"the message is not a {kind.DESCRIPTOR.name}") from None


def _require_few_fields(message: bytes, max_texts: int) -> None:
    """Refuse many fields. Protobuf may turn two bytes into fifty.

    Raises:
        IndexError, KeyError: not a ModelInferRequest.
    """
    waiting, fields = [("request", 0, len(message))], 0
    while waiting:
        part, at, end = waiting.pop()
        while at < end:
            key, at = varint(message, at)
            field, wire = (part, key >> 3), key & 7
            if part == "contents" and field != _TEXTS:
                raise ApiError(422, "an input has contents other than bytes_contents; send its texts as these")
            if wire == 0:
                _, at = varint(message, at)
            elif wire == 2:
                size, at = varint(message, at)
                if field in _PARTS:
                    waiting.append((_PARTS[field], at, min(at + size, end)))
                fields += size if field == _SHAPE else 0  # a byte for each number
                at += size
            else:
                at += _FIXED[wire]
            fields += 1
            if fields > 2 * max_texts + _OTHER_FIELDS:  # two for pairs
                raise ApiError(
                    422,
                    f"too many texts; at most {max_texts} texts or pairs a request, and {_OTHER_FIELDS} other fields",
                )


def _inputs(message: Any, most: int) -> list[dict[str, Any]]:
    """The tensors in JSON's form, with at most `most` + 1 texts each."""
    raw, inputs = message.raw_input_contents, []
    if len(message.inputs) > _MOST_TENSORS or len(message.outputs) > _MOST_TENSORS:
        raise ApiError(422, f"a request has at most {_MOST_TENSORS} inputs and {_MOST_TENSORS} outputs")
    if raw and len(raw) != len(message.inputs):
        raise ApiError(422, "raw_input_contents has not one element for each of `inputs`")
    for number, tensor in enumerate(message.inputs):
        values = {"parameters": {"binary_data_size": len(raw[number])}} if raw else {"data": _data(tensor, most)}
        inputs.append({"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape[:3]), **values})
    return inputs


def _data(tensor: Any, most: int) -> list[str]:
    try:
        return [text.decode() for text in itertools.islice(tensor.contents.bytes_contents, most + 1)]
    except UnicodeDecodeError:
        raise ApiError(422, "a text is not valid UTF-8") from None


def _reply(message: Message) -> Response:
    return Response(message.SerializeToString())
