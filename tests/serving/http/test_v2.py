"""The Open Inference Protocol V2: by NVIDIA's own client, binary and JSON, and bodies that no client would send."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import tritonclient.http as triton
from bag_models import PAIR, SINGLE, TYPED, write_artifact
from live import running

from kdc.artifact.manifest import TaskInfo
from kdc.serving.engine.engine import Engine
from kdc.serving.http.api.v2 import InferRequest, _read_bytes_tensor, _within, read_rows
from kdc.serving.http.replies import ApiError
from kdc.serving.http.settings import ServeSettings

TEXTS = ["w1 w2", "w3", "w4 w5 w6"]
PAIRS = [("w1 w2", "w3"), ("w4", "w5 w6")]
HEADER = "Inference-Header-Content-Length"


class Served:
    def __init__(self, artifact: Path, url: str) -> None:
        self.url = url
        self.engine = Engine.load(artifact, device="cpu", threads=1)
        self.client = triton.InferenceServerClient(url.removeprefix("http://"))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    artifact = write_artifact(tmp_path_factory.mktemp("single"))
    with running(f"mood={artifact}", max_texts=20) as url:
        yield Served(artifact, url)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    artifact = write_artifact(tmp_path_factory.mktemp("pair"), PAIR, TYPED)
    with running(f"nli={artifact}") as url:
        yield Served(artifact, url)


def tensor(values: Any, name: str = "text", *, binary: bool = True) -> triton.InferInput:
    array = np.array(values, dtype=object)
    given = triton.InferInput(name, array.shape, "BYTES")
    given.set_data_from_numpy(array, binary_data=binary)
    return given


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("column", [True, False])
def test_tritonclient_gets_the_engines_answers(single: Served, binary: bool, column: bool) -> None:
    values = [[text] for text in TEXTS] if column else TEXTS
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("label", "probabilities")]
    result = single.client.infer("mood", [tensor(values, binary=binary)], outputs=outputs)
    wanted = single.engine.predict(TEXTS)
    np.testing.assert_allclose(result.as_numpy("probabilities"), wanted, atol=1e-6)
    labels = [label.decode() if isinstance(label, bytes) else label for label in result.as_numpy("label").tolist()]
    assert labels == [SINGLE.labels[place] for place in wanted.argmax(axis=1)]


def test_tritonclient_by_its_defaults(single: Served) -> None:
    result = single.client.infer("mood", [tensor(TEXTS)], request_id="seven")
    np.testing.assert_allclose(result.as_numpy("probabilities"), single.engine.predict(TEXTS), atol=1e-6)
    assert result.get_response()["id"] == "seven"


@pytest.mark.parametrize("binary", [True, False])
def test_an_id_is_repeated_as_it_is_within_its_limit(single: Served, binary: bool) -> None:
    outputs = [{"name": "label", "parameters": {"binary_data": binary}}]
    body = described([1], data=["w1"]) | {"outputs": outputs}
    asked = "\u00e9" * 256
    reply = ask(single, json.dumps(body | {"id": asked}, ensure_ascii=False).encode())
    head = reply.content[: int(reply.headers.get(HEADER, len(reply.content)))]
    assert json.loads(head)["id"] == asked
    assert len(head) < 2 * len(asked) + 300  # the binary form had six bytes for each of its characters
    refused = ask(single, body | {"id": asked + "x"})
    assert refused.status_code == 422
    assert refused.json()["error"] == "`id` is too long; given: 257 characters; send at most 256"


def test_of_half_a_million_texts_no_more_are_read_than_a_request_may_have() -> None:
    # They were decoded one by one in the event loop, for a third of a second, before they were counted.
    count, decoded = 400_000, []

    class Counted(bytes):
        def __getitem__(self, place: Any) -> Any:
            decoded.append(place)
            return super().__getitem__(place)

    described = {"name": "text", "datatype": "BYTES", "shape": [count], "data": [""] * count}
    with pytest.raises(ApiError, match="too many texts"):
        read_rows(InferRequest.model_validate({"inputs": [described]}), b"", ServeSettings(max_texts=20))
    with pytest.raises(ApiError, match="too many texts"):
        _within(_read_bytes_tensor(Counted(4 * count)), ServeSettings(max_texts=20))
    assert len(decoded) < 100


def test_pairs_as_one_tensor_of_two_columns(pair: Served) -> None:
    result = pair.client.infer("nli", [tensor(PAIRS)])
    np.testing.assert_allclose(result.as_numpy("probabilities"), pair.engine.predict(PAIRS), atol=1e-6)


def test_pairs_as_two_tensors(pair: Served) -> None:
    firsts, seconds = zip(*PAIRS, strict=True)
    result = pair.client.infer("nli", [tensor(firsts), tensor(seconds, "text_pair")])
    np.testing.assert_allclose(result.as_numpy("probabilities"), pair.engine.predict(PAIRS), atol=1e-6)


def test_tritonclient_reads_health_and_metadata(single: Served) -> None:
    client = single.client
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("mood")
    assert client.is_model_ready("mood", "1")
    assert not client.is_model_ready("none")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    assert client.get_model_metadata("mood")["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert client.get_model_metadata("mood", "1")["outputs"][1]["shape"] == [-1, 3]


def test_tritonclient_gets_an_errors_words(single: Served) -> None:
    with pytest.raises(triton.InferenceServerException, match="it serves: mood"):
        single.client.infer("none", [tensor(TEXTS)])
    with pytest.raises(triton.InferenceServerException, match="one text a row"):
        single.client.infer("mood", [tensor(PAIRS)])


def test_regression_has_numbers_and_no_label(tmp_path: Path) -> None:
    score = TaskInfo(name="score", kind="regression", center=2.5, spread=1.5)
    folder = write_artifact(tmp_path, score, outputs=1)
    with running(f"score={folder}") as url:
        client = triton.InferenceServerClient(url.removeprefix("http://"))
        result = client.infer("score", [tensor(TEXTS)])
        assert [output["name"] for output in client.get_model_metadata("score")["outputs"]] == ["probabilities"]
    np.testing.assert_allclose(result.as_numpy("probabilities"), Engine.load(folder, device="cpu").predict(TEXTS))


def element(text: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text


def ask(served: Served, body: Any, tail: bytes = b"", length: str | None = None) -> httpx2.Response:
    head = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {HEADER: length or str(len(head))} if tail or length else {}
    return httpx2.post(f"{served.url}/v2/models/mood/infer", content=head + tail, headers=headers)


def described(shape: list[int], **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "shape": shape, "datatype": "BYTES", **more}]}


def binary(size: int, shape: int = 1) -> dict[str, Any]:
    return described([shape], parameters={"binary_data_size": size})


GOOD = element(b"w1")


@pytest.mark.parametrize(
    ("body", "tail", "length", "status"),
    [
        (b"{", b"", None, 400),
        (b"{}", b"", "99", 400),
        (b"{}", b"", "-1", 400),
        (b"{}", b"", "9" * 5000, 400),
        (b"{}", b"", "\u00b2", 400),
        ([], b"", None, 422),
        ({}, b"", None, 422),
        ({"inputs": []}, b"", None, 422),
        ({"inputs": [3]}, b"", None, 422),
        (described([1]), b"", None, 422),
        (described([1], data=[1]), b"", None, 422),
        (described([2], data=["w1"]), b"", None, 422),
        (described([0], data=[]), b"", None, 422),
        (described([-1], data=["w1"]), b"", None, 422),
        (described([1, 3], data=["w1", "w1", "w1"]), b"", None, 422),
        (described([10**30], data=["w1"]), b"", None, 422),
        (described([21], data=["w1"] * 21), b"", None, 422),
        ({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}, b"", None, 422),
        ({"inputs": [{"name": "text", "shape": [1], "datatype": "FP32", "data": ["a"]}]}, b"", None, 422),
        (described([1], data=["w1"]) | {"outputs": [{"name": "logits"}]}, b"", None, 422),
        (described([1], data=["w1"]) | {"outputs": [{"name": "label"}, {"name": "label"}]}, b"", None, 422),
        (binary(len(GOOD) + 1), GOOD, None, 422),
        (binary(-1), GOOD, None, 422),
        (binary(len(GOOD) - 1), GOOD, None, 422),
        (binary(2), b"ab", None, 422),
        (binary(5), struct.pack("<I", 2**32 - 1) + b"a", None, 422),
        (binary(6), element(b"\xff\xfe"), None, 422),
        (binary(len(GOOD), shape=2), GOOD, None, 422),
    ],
)
def test_an_error_is_one_json_object_and_the_next_request_works(
    single: Served, body: Any, tail: bytes, length: str | None, status: int
) -> None:
    if length == "\u00b2":  # a digit to str.isdigit, not to int
        headers = [(HEADER.encode(), "\u00b2".encode("latin-1"))]
        reply = httpx2.post(f"{single.url}/v2/models/mood/infer", content=body, headers=headers)
    else:
        reply = ask(single, body, tail, length)
    assert reply.status_code == status, reply.text
    assert set(reply.json()) == {"error", "error_type"}
    assert ask(single, binary(len(GOOD)), GOOD).status_code == 200
