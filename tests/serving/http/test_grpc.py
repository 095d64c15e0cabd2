"""The Open Inference Protocol over gRPC: by NVIDIA's own client, and messages that it would not send."""

import asyncio
import contextlib
import itertools
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx2
import numpy as np
import pytest
import tritonclient.grpc as triton
from bag_models import PAIR, SINGLE, TYPED, many_labels, write_artifact
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc._cython import cygrpc
from live import ROOT, Process, free_port, running, served
from tritonclient.grpc import service_pb2 as messages

sys.path.insert(0, str(ROOT))

from benchmarks.serving.grpc_attacks import PREFACE, frame, head
from kdc.artifact.manifest import TaskInfo
from kdc.common.errors import InputError
from kdc.serving.engine.engine import Engine
from kdc.serving.http.api.v2_grpc import _data
from kdc.serving.http.grpc_port import _options, grpc_port
from kdc.serving.http.settings import ServeSettings, check_grpc, resolve
from kdc.serving.launch import bound_socket

TEXTS = ["w1 w2", "w3", "w4 w5 w6"]
PAIRS = [("w1 w2", "w3"), ("w4", "w5 w6")]
INFER = "/inference.GRPCInferenceService/ModelInfer"
KEY = (("authorization", "Bearer sesame"),)


class Served:
    def __init__(self, artifact: Path, url: str, address: str) -> None:
        self.url = url
        self.address = address
        self.engine = Engine.load(artifact, device="cpu", threads=1)
        self.client = triton.InferenceServerClient(address)
        self.channel = grpc.insecure_channel(address)

    def call(self, message: bytes, method: str = INFER, **more: Any) -> bytes:
        answer: bytes = self.channel.unary_unary(method)(message, timeout=20, **more)
        return answer

    def refusal(self, message: bytes, method: str = INFER, **more: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as error:
            self.call(message, method, **more)
        return error.value.code(), error.value.details()


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    artifact, address = write_artifact(tmp_path_factory.mktemp("single")), f"127.0.0.1:{free_port()}"
    with running(f"mood={artifact}", grpc_address=address, max_texts=20, max_text_chars=1000) as url:
        yield Served(artifact, url, address)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    artifact, address = write_artifact(tmp_path_factory.mktemp("guarded")), f"127.0.0.1:{free_port()}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRPC_TEST_KEY", "sesame")
        with running(f"mood={artifact}", grpc_address=address, api_key_env="GRPC_TEST_KEY") as url:
            yield Served(artifact, url, address)


def tensor(values: Any, name: str = "text") -> triton.InferInput:
    array = np.array(values, dtype=object)
    given = triton.InferInput(name, array.shape, "BYTES")
    given.set_data_from_numpy(array)
    return given


def request(texts: list[bytes], shape: list[int] | None = None, **more: Any) -> Any:
    """A request whose texts are `contents`, which no client of NVIDIA sends, but KServe's clients do."""
    contents = {"bytes_contents": texts}
    given = {"name": "text", "datatype": "BYTES", "shape": shape or [len(texts)], "contents": contents}
    return messages.ModelInferRequest(model_name="mood", inputs=[given], **more)


def padding(size: int) -> dict[str, Any]:
    """Parameters, which are not read, of about so many bytes."""
    return {"size": {"string_param": "x" * size}}


def test_tritonclient_gets_the_engines_answers(single: Served) -> None:
    result = single.client.infer("mood", [tensor(TEXTS)], request_id="seven")
    wanted = single.engine.predict(TEXTS)
    np.testing.assert_allclose(result.as_numpy("probabilities"), wanted, atol=1e-6)
    assert [label.decode() for label in result.as_numpy("label")] == [SINGLE.labels[at] for at in wanted.argmax(axis=1)]
    reply = result.get_response()
    assert (reply.id, reply.model_name, reply.model_version) == (
        "seven",
        "mood",
        httpx2.get(f"{single.url}/v2/models/mood").json()["versions"][0],
    )


def test_contents_are_answered_by_contents_and_only_what_was_asked_for(single: Served) -> None:
    asked = request([text.encode() for text in TEXTS], outputs=[{"name": "probabilities"}])
    reply = messages.ModelInferResponse.FromString(single.call(asked.SerializeToString()))
    (output,) = reply.outputs
    assert (output.name, output.datatype, list(output.shape), list(reply.raw_output_contents)) == (
        "probabilities",
        "FP32",
        [3, 3],
        [],
    )
    found = np.array(output.contents.fp32_contents).reshape(3, 3)
    np.testing.assert_allclose(found, single.engine.predict(TEXTS), atol=1e-6)


def test_pairs_of_both_forms_and_regression(tmp_path: Path) -> None:
    score = TaskInfo(name="score", kind="regression", center=2.5, spread=1.5)
    pair, number = write_artifact(tmp_path / "pair", PAIR, TYPED), write_artifact(tmp_path / "score", score, outputs=1)
    address = f"127.0.0.1:{free_port()}"
    with running(f"nli={pair},score={number}", grpc_address=address):
        client = triton.InferenceServerClient(address)
        columns = client.infer("nli", [tensor(PAIRS)]).as_numpy("probabilities")
        firsts, seconds = zip(*PAIRS, strict=True)
        apart = client.infer("nli", [tensor(firsts), tensor(seconds, "text_pair")]).as_numpy("probabilities")
        numbers = client.infer("score", [tensor(TEXTS)])
        outputs = [output.name for output in client.get_model_metadata("score").outputs]
    for found in (columns, apart):
        np.testing.assert_allclose(found, Engine.load(pair, device="cpu").predict(PAIRS), atol=1e-6)
    np.testing.assert_allclose(
        numbers.as_numpy("probabilities"), Engine.load(number, device="cpu").predict(TEXTS), atol=1e-6
    )
    assert outputs == [output.name for output in numbers.get_response().outputs] == ["probabilities"]


def test_tritonclient_reads_health_and_metadata(single: Served) -> None:
    client = single.client
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("mood")
    assert client.is_model_ready("mood", "1")
    assert client.get_server_metadata().name == "kdc"
    for refused in (lambda: client.is_model_ready("none"), lambda: client.is_model_ready("mood", "2")):
        with pytest.raises(triton.InferenceServerException, match="NOT_FOUND"):
            refused()
    described = client.get_model_metadata("mood", as_json=True)
    assert described["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": ["-1"]}]
    assert described["outputs"][1]["shape"] == ["-1", "3"]


def health_messages() -> tuple[Any, Any]:
    """The messages of grpc.health.v1 (github.com/grpc/grpc, src/proto/grpc/health/v1/health.proto), written anew."""
    file = descriptor_pb2.FileDescriptorProto(name="health_test.proto", package="health_test", syntax="proto3")
    for name, field, kind in (("Request", "service", 9), ("Response", "status", 5)):  # a string; a number as an enum is
        file.message_type.add(name=name).field.add(name=field, number=1, type=kind, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = [
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"health_test.{name}"))
        for name in ("Request", "Response")
    ]
    return found[0], found[1]


def test_the_kubelets_probe_asks_without_a_token(guarded: Served) -> None:
    asked, answer = health_messages()
    method = "/grpc.health.v1.Health/Check"
    for name in ("", "inference.GRPCInferenceService"):
        assert answer.FromString(guarded.call(asked(service=name).SerializeToString(), method)).status == 1  # SERVING
    assert guarded.client.is_server_live()
    assert guarded.client.is_server_ready()


def test_probes_without_a_token_hold_up_nobody(guarded: Served) -> None:
    """Would catch a probe whose message is read: it counted among the bodies in work for ever, and one that did not end
    kept others from being read."""
    check = guarded.channel.stream_unary("/grpc.health.v1.Health/Check")
    never = threading.Event()

    def unfinished() -> Iterator[bytes]:
        yield b"x" * 2_000_000
        never.wait(20)

    assert {check(unfinished(), timeout=10) for _ in range(80)} == {b"\x08\x01"}  # SERVING
    never.set()
    asked = request([b"w1"], parameters=padding(120_000)).SerializeToString()
    assert guarded.call(asked, metadata=KEY)
    assert httpx2.post(f"{guarded.url}/predict", json={"inputs": "w1"}, headers=dict(KEY)).status_code == 200


def test_without_the_token_a_message_is_not_even_read(guarded: Served) -> None:
    asked = request([b"w1"]).SerializeToString()
    assert guarded.call(asked, metadata=KEY)
    code, words = guarded.refusal(asked)
    assert (code, words) == (grpc.StatusCode.UNAUTHENTICATED, "the bearer token is missing or wrong")
    large = asked + b"\x00" * 3_000_000
    assert guarded.refusal(large)[0] == grpc.StatusCode.UNAUTHENTICATED
    assert guarded.refusal(large, metadata=KEY)[0] == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_compressed_message_is_refused_before_it_is_unpacked(single: Served) -> None:
    asked = request([b"w1"], parameters=padding(1_500_000)).SerializeToString()  # within the limit, both ways
    assert single.call(asked)
    code, _ = single.refusal(asked, compression=grpc.Compression.Gzip)
    assert code == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        (b"\xff\xff", "INVALID_ARGUMENT", "the message is not a ModelInferRequest"),
        (request([b"w1"] * 21), "INVALID_ARGUMENT", "too many texts; given: 21; at most 20"),
        (request([b""] * 500_000), "INVALID_ARGUMENT", "too many texts; at most 20"),
        (
            request([b"w1 "] * 2, shape=[3]),
            "INVALID_ARGUMENT",
            "an input has 2 elements, unlike its shape",
        ),
        (request([b"\xff"]), "INVALID_ARGUMENT", "a text is not valid UTF-8"),
        (request([b" "]), "INVALID_ARGUMENT", "a text is empty; given: row 0"),
        (request([b"w" * 1001]), "INVALID_ARGUMENT", "a text is too long; given: 1001 characters"),
        (request([b"w1"], raw_input_contents=[b"", b""]), "INVALID_ARGUMENT", "not one element for each of `inputs`"),
        (request([b"w1"], outputs=[{"name": "logits"}]), "INVALID_ARGUMENT", "`outputs` names something else"),
        (request([b"w1"], model_version="2"), "NOT_FOUND", "there is no such version"),
        (messages.ModelInferRequest(model_name="mood", inputs=[{}] * 300), "INVALID_ARGUMENT", "at most 2 inputs"),
        (request([b"w1"], id="x" * 257), "INVALID_ARGUMENT", "`id` is too long; given: 257 characters"),
        (messages.ModelInferRequest(model_name="mood"), "INVALID_ARGUMENT", "`inputs`: List should have at least"),
        (messages.ModelInferRequest(), "NOT_FOUND", "there is no such model; it serves: mood"),
    ],
)
def test_wrong_messages_get_the_words_that_http_has(single: Served, asked: Any, code: str, words: str) -> None:
    given = asked if isinstance(asked, bytes) else asked.SerializeToString()
    found, details = single.refusal(given)
    assert found.name == code
    assert words in details


def test_of_half_a_million_texts_no_more_are_decoded_than_a_request_may_have() -> None:
    decoded = itertools.count()
    texts = (b"w1" for _ in range(500_000) if next(decoded) >= 0)
    assert len(_data(SimpleNamespace(contents=SimpleNamespace(bytes_contents=texts)), 40)) == 41  # one more shows it
    assert next(decoded) == 41


def test_methods_that_there_are_not(single: Served) -> None:
    assert single.refusal(b"", "/inference.GRPCInferenceService/ModelStreamInfer")[0] == grpc.StatusCode.UNIMPLEMENTED
    assert single.refusal(b"", "/predict")[0] == grpc.StatusCode.UNIMPLEMENTED
    assert httpx2.post(single.url + INFER, content=b"").status_code == 404  # and over HTTP there is no such path


def test_a_call_is_counted_like_a_request_and_tells_the_artifact(
    single: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdc.serving.http.metrics.Metrics.told", lambda _: None)  # made anew each time

    def counted() -> float:
        name = f'kdc_requests_total{{route="{INFER}",status="200"}} '
        lines = httpx2.get(f"{single.url}/metrics").text.splitlines()
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    before = counted()
    _, call = single.channel.unary_unary(INFER).with_call(request([b"w1"]).SerializeToString())
    told = dict(call.trailing_metadata())
    assert told["x-artifact"] == httpx2.post(f"{single.url}/predict", json={"inputs": "w1"}).headers["x-artifact"]
    assert counted() == before + 1


def test_an_overloaded_service_says_when_to_come_again(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    limits = {"max_body_bytes": 4096, "max_bodies_bytes": 1024}
    with (
        running(f"mood={write_artifact(tmp_path)}", grpc_address=address, **limits),
        grpc.insecure_channel(address) as channel,
        pytest.raises(grpc.RpcError) as refused,
    ):
        channel.unary_unary(INFER)(request([b"w1"], parameters=padding(2000)).SerializeToString())
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(refused.value.trailing_metadata())["retry-after"] == "1"


def test_a_message_that_does_not_come_is_waited_for_as_long_as_any_body(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    never = threading.Event()

    def silent() -> Iterator[bytes]:
        never.wait(20)
        yield b""

    with (
        running(f"mood={write_artifact(tmp_path)}", grpc_address=address, timeout_s=0.5) as url,
        grpc.insecure_channel(address) as channel,
    ):
        late = channel.stream_unary(INFER).future(silent())
        assert late.exception(10).code() == grpc.StatusCode.DEADLINE_EXCEEDED
        left = channel.stream_unary(INFER).future(silent())
        time.sleep(0.2)
        left.cancel()
        time.sleep(0.1)
        shown = httpx2.get(f"{url}/metrics").text
        never.set()
    for status in (504, 499):
        assert f'kdc_requests_total{{route="{INFER}",status="{status}"}} 1.0' in shown


def test_messages_that_do_not_come_leave_others_their_places(tmp_path: Path) -> None:
    """While all places to read are taken, a message has a tenth of a second: 32 calls held others up for a minute."""
    address = f"127.0.0.1:{free_port()}"
    asked = request([b"w1"]).SerializeToString()
    begun = b"".join(frame(1, 4, each, head()) + frame(0, 0, each, b"\0\0\0\x04\0x") for each in range(1, 32, 2))
    with (
        running(
            f"mood={write_artifact(tmp_path)}", grpc_address=address, max_bodies_bytes=2 << 20, timeout_s=20
        ) as url,
        grpc.insecure_channel(address) as channel,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(2):
            client = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
            stack.enter_context(client).sendall(PREFACE + frame(4, 0, 0) + begun)
        channel.unary_unary(INFER)(asked, timeout=20)  # 32 * 0.1 s at most; it was 32 * 2 s
        assert 'status="504"' in httpx2.get(f"{url}/metrics").text


def test_replies_that_are_not_read_have_a_budget(tmp_path: Path) -> None:
    """A client whose window takes nothing has a few large replies made, and no more; a small one is always sent."""
    address = f"127.0.0.1:{free_port()}"
    artifact = write_artifact(tmp_path / "artifact", many_labels(500), outputs=500)
    large = request([b"w1"] * 10).SerializeToString()  # its reply has 20 kB
    small = request([b"w1"], outputs=[{"name": "label"}]).SerializeToString()
    message = struct.pack(">BI", 0, len(large)) + large
    calls = b"".join(frame(1, 4, each, head()) + frame(0, 1, each, message) for each in range(1, 32, 2))
    deadline = time.monotonic() + 60

    def until(wanted: grpc.StatusCode | None, infer: Any) -> None:
        got: grpc.StatusCode | None = grpc.StatusCode.UNKNOWN
        while got is not wanted:
            assert time.monotonic() < deadline
            error = infer.future(large, timeout=20).exception()
            got = None if error is None else error.code()

    with (
        running(f"mood={artifact}", grpc_address=address, max_unsent_bytes=400_000),
        grpc.insecure_channel(address) as channel,
    ):
        infer = channel.unary_unary(INFER)
        until(None, infer)
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as client:
            client.sendall(PREFACE + frame(4, 0, 0, struct.pack(">HI", 4, 0)) + calls)
            until(grpc.StatusCode.RESOURCE_EXHAUSTED, infer)
            infer(small, timeout=20)
        until(None, infer)


def test_a_burst_above_the_calls_of_a_connection_waits_for_its_turn(single: Served) -> None:
    # With the library's own protection on, calls above the limit were refused though the client kept to it.
    asked = request([b"w1 w2"]).SerializeToString()
    calls = [single.channel.unary_unary(INFER).future(asked) for _ in range(300)]
    assert [call.exception(30) for call in calls] == [None] * 300


def test_a_service_that_drains_says_so_and_ends(tmp_path: Path) -> None:
    artifact, address = write_artifact(tmp_path / "artifact"), f"127.0.0.1:{free_port()}"
    options = ("--workers", "2", "--drain-delay", "1", "--grpc-address", address)
    asked = request([b"w1 w2"]).SerializeToString()
    asks, answer = health_messages()
    with served(tmp_path, f"mood={artifact}", *options) as process, grpc.insecure_channel(address) as channel:
        infer, check = channel.unary_unary(INFER), channel.unary_unary("/grpc.health.v1.Health/Check")
        infer(asked)
        taken = [infer.future(asked) for _ in range(100)]
        process.popen.terminate()
        ended = [call.exception(20) for call in taken]
        told = {error.details() for error in ended if error is not None}
        assert told <= {"the service is starting or draining"}  # none is lost
        time.sleep(0.4)
        assert answer.FromString(check(asks().SerializeToString())).status == 2  # NOT_SERVING
        with pytest.raises(grpc.RpcError) as refused:
            infer(asked)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert process.popen.wait(20) == 0


def test_a_port_alone_is_one_of_this_machine() -> None:
    assert resolve({"grpc_address": "9000"}).grpc_address == "127.0.0.1:9000"
    assert resolve({"grpc_address": "0.0.0.0:9000"}).grpc_address == "0.0.0.0:9000"


def test_grpc_knows_each_option_that_bounds_its_port() -> None:
    """grpc ignores an option that it does not know, and the limit with it."""
    library = Path(cygrpc.__file__).read_bytes()
    options = _options(ServeSettings(grpc_address="127.0.0.1:9000"))
    assert [name for name in options if name.encode() not in library] == []


def test_what_is_wrong_with_the_address_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("0", "127.0.0.1:0", "127.0.0.1:99999", "a b:9000", "http://a:9000"):
        with pytest.raises(InputError, match="KDC_GRPC_ADDRESS"):
            resolve({"grpc_address": address})
    for name in ("no.such.host.invalid", "a..b"):
        with pytest.raises(InputError, match="in --grpc-address"):
            bound_socket(name, 9000, "--grpc-address")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'kdc\[grpc\]'"):
        check_grpc(ServeSettings(grpc_address="127.0.0.1:9000"))
    check_grpc(ServeSettings())


def test_an_address_that_is_taken_is_told(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "artifact")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = Process(tmp_path, str(artifact), "--grpc-address", address)
        assert process.popen.wait(30) == 2
        assert f"given: {address}" in process.printed()
        assert "take another one with --grpc-address" in process.printed()

        async def nothing(*_: Any) -> None:
            pass

        async def started() -> None:  # as under `bentoml serve`, which looks at no port beforehand
            async with grpc_port(nothing, (), ServeSettings(grpc_address=address)):
                pass

        with pytest.raises(InputError, match="cannot listen for gRPC there"):
            asyncio.run(started())
