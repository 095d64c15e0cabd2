"""What a request's body becomes: its structure is bounded before it is decoded, and only what is needed is kept."""

import asyncio
import json
import random
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import grpc
import httpx2
import orjson
import pytest
from bag_models import write_artifact
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st
from live import ROOT, free_port, running
from pydantic import ValidationError
from starlette.requests import Request
from tritonclient.grpc import service_pb2 as messages

sys.path.insert(0, str(ROOT))

from benchmarks.serving.attacks import nested_bodies
from kdc.artifact.manifest import TaskInfo
from kdc.serving.http.api import request_body, v2_grpc
from kdc.serving.http.api.gate import Gate
from kdc.serving.http.api.request_body import Marks, Part, decoded
from kdc.serving.http.api.tei import PredictRequest
from kdc.serving.http.metrics import Metrics
from kdc.serving.http.model import Model
from kdc.serving.http.replies import ApiError
from kdc.serving.http.settings import ServeSettings

TAGS = TaskInfo(name="tags", kind="multilabel", labels=("x", "y", "z"))
INFER = "/inference.GRPCInferenceService/ModelInfer"

texts = st.text(st.sampled_from('[]{},:"\\ a1\n\u00e9\u4e2d\U0001f600'), max_size=20)
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=40,
)
spellings = st.sampled_from([{"ensure_ascii": True}, {"ensure_ascii": False}, {"indent": 1}])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Addresses for HTTP and gRPC of a model with several labels, which every dialect can ask."""
    artifact, address = write_artifact(tmp_path_factory.mktemp("tags"), TAGS), f"127.0.0.1:{free_port()}"
    with running(f"tags={artifact}", grpc_address=address) as url:
        yield url, address


def count_marks(body: bytes) -> int:
    """Byte by byte, as RFC 8259 describes strings."""
    count, in_string, escaped = 0, False, False
    for byte in body:
        char = chr(byte)
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == '"':
            in_string, count = not in_string, count + 1
        elif not in_string and char in "[{,":
            count += 1
    return count


def pieces(body: bytes, places: list[int]) -> Iterator[bytes]:
    cuts = sorted(place % (len(body) + 1) for place in places)
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        yield body[start:end]


def values(document: Any) -> int:
    """Objects that a document is: containers, keys and all else."""
    if isinstance(document, dict):
        return 1 + len(document) + sum(map(values, document.values()))
    return 1 + (sum(map(values, document)) if isinstance(document, list) else 0)


@given(documents, spellings, st.lists(st.integers(0, 10_000), max_size=5))
def test_a_documents_marks_bound_what_it_becomes(document: Any, spelling: dict[str, Any], places: list[int]) -> None:
    body = json.dumps(document, **spelling).encode()
    marks = Marks()
    for piece in pieces(body, places):
        marks.add(piece)
    assert marks.count == count_marks(body)
    assert values(orjson.loads(body)) <= 2 * marks.count + 1


@given(documents, spellings, st.text(st.sampled_from('[]{},:"\\a1 '), max_size=60), st.integers(0, 10_000))
def test_what_precedes_the_first_error_is_counted(document: Any, spelling: dict[str, Any], rest: str, cut: int) -> None:
    body = json.dumps(document, **spelling).encode()
    valid = body[: cut % (len(body) + 1)]
    marks = Marks()
    for piece in pieces(valid + rest.encode(), [len(valid)]):
        marks.add(piece)
    assert marks.count >= count_marks(valid)


@given(documents, spellings)
def test_a_document_is_decoded_as_the_standard_library_does(document: Any, spelling: dict[str, Any]) -> None:
    written = json.dumps(document, **spelling)
    body = written.encode()
    try:
        expected = orjson.loads(body)
    except orjson.JSONDecodeError:  # an integer of more than 64 bits is a float to it, and a lone surrogate an error
        return
    assert decoded(body) == expected
    if not any(isinstance(number, int) and abs(number) >= 2**63 for number in numbers(document)):
        assert expected == json.loads(written)


def numbers(document: Any) -> Iterator[Any]:
    if isinstance(document, list | dict):
        for inner in document.values() if isinstance(document, dict) else document:
            yield from numbers(inner)
    else:
        yield document


def test_pieces_of_large_bodies_take_turns_of_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch twelve bodies of two megabytes that small requests wait for together, while pieces are counted, all
    is decoded, or what was decoded is looked at."""
    events: list[str] = []

    def noted(body: bytes) -> bytes:
        events.append("d")
        return body

    monkeypatch.setattr(Marks, "add", lambda *_: events.append("p"))
    monkeypatch.setattr(request_body, "decoded", noted)

    async def ask(gate: Gate) -> bytes:
        pieces = [b"x" * 100_000] * 4

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": pieces.pop(), "more_body": bool(pieces)}

        app = SimpleNamespace(state=SimpleNamespace(gate=gate, settings=ServeSettings()))
        body: bytes = await request_body.read_json(Request({"type": "http", "headers": [], "app": app}, receive))
        events.append("l")
        return body

    async def crowd() -> None:
        gate = Gate(ServeSettings(), Metrics())
        bodies = asyncio.gather(*(ask(gate) for _ in range(12)))
        while not bodies.done():
            events.append(" ")
            await asyncio.sleep(0)
        assert [len(body) for body in await bodies] == [400_000] * 12

    asyncio.run(crowd())
    assert max(map(len, "".join(events).split())) == 1


@pytest.mark.parametrize("number", range(len(nested_bodies())))
def test_a_body_that_becomes_large_is_refused_before_it_is_decoded(
    served: tuple[str, str], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, body = nested_bodies()[number]
    read: list[int] = []
    monkeypatch.setattr(request_body.Marks, "add", counting(request_body.Marks.add, read))
    monkeypatch.setattr(request_body, "orjson", SimpleNamespace(loads=None, JSONDecodeError=ValueError))  # would be 500
    reply = httpx2.post(served[0] + path.format("tags"), content=body)
    refused = 400 if path == "/v1/decisions" else 422  # as OpenAI's API does
    assert (reply.status_code, reply.headers["connection"]) == (refused, "close")
    assert "at most 1024 texts" in reply.text
    assert sum(read) < 1_000_000  # of two megabytes
    monkeypatch.undo()
    assert httpx2.post(f"{served[0]}/predict", json={"inputs": "w1"}).status_code == 200


def counting(add: Callable[[Marks, bytes], None], read: list[int]) -> Callable[[Marks, bytes], None]:
    def counted(marks: Marks, piece: bytes) -> None:
        read.append(len(piece))
        add(marks, piece)

    return counted


def test_as_many_texts_as_a_request_may_have_pass_in_every_form(tmp_path: Path) -> None:
    with running(f"tags={write_artifact(tmp_path, TAGS)}", max_texts=300) as url:
        texts = ['w1, w2 [w3] {w4} "w5" \\ "'] * 300
        rows: Any = [[text] for text in texts]
        tensor = {"name": "text", "datatype": "BYTES", "shape": [300, 1], "parameters": {"a": 1}, "data": rows}
        for path, body in (
            ("/predict", {"inputs": rows, "parameters": {"top_k": 2, "truncation_direction": "left"}}),
            ("/classify", {"input": rows, "user": "someone"}),
            ("/v1/moderations", {"input": texts}),
            ("/v2/models/tags/infer", {"id": "7", "inputs": [tensor], "outputs": [{"name": "label"}]}),
        ):
            assert httpx2.post(url + path, json=body).status_code == 200
        # Pairs in two tensors have the most marks; a model of single texts says so after they were read.
        both = [tensor, tensor | {"name": "text_pair"}]
        reply = httpx2.post(f"{url}/v2/models/tags/infer", json={"inputs": both})
        assert "one text a row" in reply.json()["error"]


def test_while_a_request_waits_only_its_texts_are_kept(
    served: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    answer = Model.answer

    async def looking(model: Model, *args: Any, **kwargs: Any) -> Any:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_globals["__name__"].startswith("kdc.serving.http.api."):
                kept.extend(f"{frame.f_code.co_name}: {name}" for name, it in frame.f_locals.items() if is_needless(it))
            frame = frame.f_back
        return await answer(model, *args, **kwargs)

    monkeypatch.setattr(Model, "answer", looking)
    needless = "needless" * 10
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1]}
    document = {"id": "7", "parameters": {"x": needless}, "inputs": [tensor | {"data": ["w1"]}]}
    raw = tensor | {"parameters": {"binary_data_size": 6}}
    head = json.dumps(document | {"inputs": [raw]}).encode()
    url, address = served
    for path, body in (
        ("/predict", {"inputs": "w1", "model": "tags", "parameters": {}}),
        ("/classify", {"inputs": "w1", "parameters": {}}),
        ("/predict/tags", {"inputs": "w1", "model": [needless]}),
        ("/classify", {"input": "w1", "user": needless, "request_id": needless, "priority": [needless]}),
        ("/v1/moderations", {"input": "w1", "model": "tags"}),
        ("/v2/models/tags/infer", document),
    ):
        assert httpx2.post(url + path, json=body).status_code == 200
    reply = httpx2.post(
        f"{url}/v2/models/tags/infer",
        content=head + struct.pack("<I", 2) + b"w1",
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert reply.status_code == 200
    message = messages.ModelInferRequest(
        model_name="tags", inputs=[tensor | {"contents": {"bytes_contents": [b"w1"]}}]
    ).SerializeToString()
    with grpc.insecure_channel(address) as channel:
        assert channel.unary_unary(INFER)(message)
    assert kept == []


def is_needless(kept: Any) -> bool:
    """Whether a local variable is a whole document, a raw body, or a message."""
    if isinstance(kept, Part):
        return bool(getattr(kept, "rows", True)) or "needless" in repr(kept)
    if isinstance(kept, dict):
        return bool({"inputs", "input", "parameters"} & set(kept))
    return isinstance(kept, Message) or (isinstance(kept, bytes) and b"w1" in kept)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (PredictRequest, {"inputs": "w1"} | {f"key-{number}": 0 for number in range(1000)}),
        (PredictRequest, {"inputs": "w1", "parameters": {f"key-{number}": 0 for number in range(1000)}}),
        (PredictRequest, {"inputs": [[0]] * 1000}),
    ],
)
def test_a_refused_body_becomes_few_errors(kind: type[Part], body: dict[str, Any]) -> None:
    """Would catch an error made for each key or value, of which one is told: they took 8 ms of the event loop."""
    with pytest.raises(ValidationError) as refused:
        kind.model_validate(body)
    assert refused.value.error_count() <= 5
    with pytest.raises(ApiError, match=r"Input should|unknown keys; known"):
        request_body.checked(kind, body)


def test_texts_count_as_what_they_become(tmp_path: Path) -> None:
    with running(write_artifact(tmp_path), max_bodies_bytes=200_000) as url:
        for text, status in (("w1 " * 30_000, 200), ("\U0001f600" + "w1 " * 30_000, 429)):  # four bytes a character
            body = json.dumps({"inputs": text}, ensure_ascii=False).encode()
            assert httpx2.post(f"{url}/predict", content=body).status_code == status
        assert httpx2.post(f"{url}/predict", json={"inputs": "w1 " * 30_000}).status_code == 200  # all was given back


def test_a_page_of_another_site_cannot_ask(served: tuple[str, str]) -> None:
    body, page = b'{"inputs": "w1"}', {"Origin": "https://elsewhere.example"}
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    own = {"Content-Type": "application/json"}
    for headers, status in ((form, 200), ({}, 200), (page | own, 200), (page | form, 415), (page, 415)):
        assert httpx2.post(f"{served[0]}/predict", content=body, headers=headers).status_code == status
    plain = page | {"Content-Type": "text/plain"}
    assert httpx2.post(f"{served[0]}/v2/models/tags/infer", content=body, headers=plain).status_code == 415


def test_an_option_that_is_nested_deep_is_refused(served: tuple[str, str]) -> None:
    # It was turned into a text to be compared, which Python refuses to do so deep.
    body = b'{"inputs": "w1", "function_to_apply": ' + b"[" * 1000 + b"]" * 1000 + b"}"
    assert httpx2.post(f"{served[0]}/predict", content=body).status_code == 422


@pytest.mark.parametrize("field", ["int64_contents", "fp32_contents", "bool_contents"])
def test_contents_that_are_no_texts_are_refused_before_protobuf_reads_them(
    served: tuple[str, str], field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {"bytes_contents": [b"w1"], field: [1] * 100_000}
    given = {"name": "text", "datatype": "BYTES", "shape": [1], "contents": contents}
    asked = messages.ModelInferRequest(model_name="tags", inputs=[given]).SerializeToString()
    monkeypatch.setattr(messages.ModelInferRequest, "FromString", None)  # reading it would be an internal error
    with grpc.insecure_channel(served[1]) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(INFER)(asked)
    assert "bytes_contents" in refused.value.details()


def parts_of(message: Message) -> int:
    """Messages, texts and numbers inside a message."""
    count = 0
    for field, value in message.ListFields():
        for each in value if field.is_repeated and not hasattr(value, "items") else [value]:
            count += len(each) if hasattr(each, "items") else 1
            count += parts_of(each) if isinstance(each, Message) else 0
    return count


def test_a_message_that_passes_becomes_no_more_than_it_may() -> None:
    random_ = random.Random(0)
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1, 2], "contents": {"bytes_contents": [b"a", b""]}}
    good = messages.ModelInferRequest(
        model_name="mood",
        id="7",
        parameters={"a": {"bool_param": True}},
        inputs=[tensor],
        outputs=[{"name": "label", "parameters": {"b": {"int64_param": 3}}}],
        raw_input_contents=[b"a"],
    ).SerializeToString()
    passed = 0
    for _ in range(4000):
        message = bytearray(good)
        for _ in range(random_.randrange(3)):
            message[random_.randrange(len(message))] = random_.randrange(256)
        start = random_.randrange(len(message))
        message += message[start : start + random_.randrange(1, 40)] * random_.randrange(400)
        try:
            v2_grpc._require_few_fields(bytes(message), max_texts=1)
            found = messages.ModelInferRequest.FromString(bytes(message))
        except (ApiError, IndexError, KeyError, DecodeError):
            continue
        passed += 1
        assert parts_of(found) <= 2 + v2_grpc._OTHER_FIELDS
    assert passed > 100


def shaped(count: int) -> bytes:
    return messages.ModelInferRequest(inputs=[{"shape": [1] * count}]).SerializeToString()


def repeated(field: int) -> Callable[[int], bytes]:
    return lambda count: bytes([field << 3 | 2, 0]) * count


@pytest.mark.parametrize("of", [shaped, *map(repeated, (4, 5, 6, 7))])
def test_a_message_of_many_empty_fields_or_numbers_is_refused(of: Callable[[int], bytes]) -> None:
    few, many = of(500), of(600)
    v2_grpc._require_few_fields(few, max_texts=1)
    with pytest.raises(ApiError, match="at most 1 texts"):
        v2_grpc._require_few_fields(many, max_texts=1)


def test_a_group_cannot_hide_what_a_message_has() -> None:
    with pytest.raises(KeyError):
        v2_grpc._require_few_fields(b"\xa3\x06" + b"\x2a\x00" * 10 + b"\xa4\x06", max_texts=1)
