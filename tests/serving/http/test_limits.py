"""What protects the service: token, sizes, queue, time limits, clients that leave; and that logs hold no texts."""

import asyncio
import contextlib
import gzip
import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from bag_models import SINGLE, write_artifact
from live import connect, running

from kdc.artifact.folder import load_manifest
from kdc.common.errors import InputError
from kdc.serving.engine.engine import Engine
from kdc.serving.http.settings import ServeSettings

KEY = "s3cret-token"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("artifact"))


@pytest.fixture(scope="module")
def url(artifact: Path) -> Iterator[str]:
    with running(artifact, max_body_bytes=4096) as address:
        yield address


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Forward passes wait until the event is set."""
    gate, run = threading.Event(), Engine.run

    def held(self: Engine, encodings: Any) -> Any:
        gate.wait(20)
        return run(self, encodings)

    monkeypatch.setattr(Engine, "warm_up", lambda self, tokens: None)
    monkeypatch.setattr(Engine, "run", held)
    monkeypatch.setattr(Engine, "run_beside", held)
    return gate


def ask(url: str, text: str = "w1", **more: Any) -> httpx2.Response:
    return httpx2.post(f"{url}/predict", json={"inputs": text}, timeout=30, **more)


def answers_again(url: str) -> None:
    """With a time limit this short, a busy machine may miss it once more."""
    assert any(ask(url).status_code == 200 for _ in range(50))


def raw(body: bytes, *, length: int | None = None, extra: bytes = b"") -> bytes:
    size = len(body) if length is None else length
    return b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n%s" % (size, extra, body)


def test_the_token_is_asked_for(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with running(artifact, api_key_env="MY_KEY") as url:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": KEY},
            {"Authorization": f"Basic {KEY}"},
        ):
            reply = ask(url, headers=headers)
            assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
        for scheme in ("Bearer", "bearer"):
            assert ask(url, headers={"Authorization": f"{scheme} {KEY}"}).status_code == 200
        for open_route in ("/health", "/metrics", "/v2/health/live", "/v2/health/ready", "/docs.json"):
            assert httpx2.get(url + open_route).status_code == 200
        for closed in ("/info", "/v2", "/nowhere"):
            assert httpx2.get(url + closed).status_code == 401


def test_no_route_leads_to_the_host_that_a_client_names(artifact: Path) -> None:
    with running(artifact) as url:
        reply = httpx2.post(f"{url}/predict/", json={"inputs": "w1"}, headers={"Host": "elsewhere.example"})
    assert (reply.status_code, reply.headers.get("location")) == (404, None)


@pytest.mark.parametrize("key", [" k", "k ", "line\n", "a\nb", "a\x00b"])
def test_a_token_that_no_header_can_bring_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"MY_KEY": key})
    with pytest.raises(InputError) as caught:
        _ = ServeSettings(api_key_env="MY_KEY").api_key
    assert f"{key!r}" not in str(caught.value)


def test_a_compressed_body_is_refused_by_name(url: str) -> None:
    body = gzip.compress(b'{"inputs": "w1"}')
    reply = httpx2.post(f"{url}/predict", content=body, headers={"Content-Encoding": "gzip"})
    assert (reply.status_code, "compressed" in reply.json()["error"]) == (415, True)


def test_all_bodies_together_are_bounded(artifact: Path) -> None:
    with running(artifact, max_body_bytes=4096, max_bodies_bytes=6000) as url:
        with connect(url) as one, connect(url) as two:
            one.sendall(raw(b" " * 4000, length=4096))
            time.sleep(0.2)
            two.sendall(raw(b" " * 4000, length=4096))
            assert b" 429 " in two.recv(4096).split(b"\r\n", 1)[0]
        reply = httpx2.post(f"{url}/predict", content=b" " * 4000 + b'{"inputs": "w1"}')
        assert reply.status_code == 200  # they left, and their bytes with them


def test_a_head_without_end_is_refused(url: str) -> None:
    with connect(url) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Long: ")
        with contextlib.suppress(OSError):  # it closes while we send
            for _ in range(100):
                client.sendall(b"x" * 1024)
        assert b" 431 " in client.recv(4096).split(b"\r\n", 1)[0]
    assert ask(url).status_code == 200


def test_large_bodies_on_one_connection_are_not_taken_for_heads(artifact: Path) -> None:
    with running(artifact) as url, httpx2.Client() as client:
        for _ in range(3):
            body = {"inputs": [["w1 " * 3000]] * 30}  # 270 kB
            assert client.post(f"{url}/predict", json=body, timeout=30).status_code == 200


def test_a_connection_that_says_nothing_is_closed(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdc.serving.http.protocol.HEAD_S", 0.2)
    with running(artifact) as url, connect(url) as client:
        assert client.recv(100) == b""


def test_what_is_not_http_gets_the_json_object_too(url: str) -> None:
    with connect(url) as client:
        client.sendall(b"\x16\x03\x01 no such thing\r\n\r\n")
        head, _, body = client.recv(4096).partition(b"\r\n\r\n")
    assert b" 400 " in head.split(b"\r\n", 1)[0]
    assert json.loads(body)["error_type"] == "Malformed"


@pytest.mark.parametrize("chunked", [True, False])
def test_a_large_body_is_refused_and_the_next_request_works(url: str, chunked: bool) -> None:
    body = b'{"inputs": "' + b"w" * 10_000 + b'"}'
    content: Any = iter([body[:100], body[100:]]) if chunked else body
    reply = httpx2.post(f"{url}/predict", content=content)
    assert (reply.status_code, reply.json()["error_type"]) == (413, "TooLarge")
    assert ask(url).status_code == 200


def test_a_body_of_100_mb_is_refused_before_it_is_read(url: str) -> None:
    with connect(url) as client:
        client.sendall(raw(b"{", length=100 * 1024 * 1024))
        assert b" 413 " in client.recv(4096).split(b"\r\n", 1)[0]


def test_half_a_body_is_given_up_in_time(artifact: Path) -> None:
    with running(artifact, timeout_s=0.3) as url, connect(url) as client:
        client.sendall(raw(b'{"inputs"', length=100))
        assert b" 504 " in client.recv(4096).split(b"\r\n", 1)[0]
        answers_again(url)


def test_a_client_that_leaves_in_the_middle_disturbs_nobody(url: str) -> None:
    for sent in (b"POST /pred", raw(b'{"inputs"', length=100), raw(b'{"inputs": "w1"}')):
        with connect(url) as client:
            client.sendall(sent)
    assert ask(url).status_code == 200


def test_an_answer_that_takes_too_long_is_504(artifact: Path, slow: threading.Event) -> None:
    with running(artifact, timeout_s=0.2) as url:
        reply = ask(url)
        slow.set()
        assert (reply.status_code, reply.json()["error_type"]) == (504, "Timeout")
        answers_again(url)


def test_a_forward_pass_that_hangs_does_not_hold_up_the_end(artifact: Path, slow: threading.Event) -> None:
    with running(artifact, timeout_s=0.2) as url:
        assert ask(url).status_code == 504
    assert not slow.is_set()  # it hangs still, and the server is gone
    slow.set()


def gather(url: str, texts: list[str]) -> list[httpx2.Response]:
    async def all_of_them() -> list[httpx2.Response]:
        limits = httpx2.Limits(max_connections=len(texts))
        async with httpx2.AsyncClient(limits=limits, timeout=30) as client:
            return await asyncio.gather(*(client.post(f"{url}/predict", json={"inputs": text}) for text in texts))

    return asyncio.run(all_of_them())


def refusals(url: str) -> float:
    """Requests that were answered with 429, by the queue or by the gate, which does not know their route."""
    counts = re.findall(r'kdc_requests_total{route="[^"]*",status="429"} (\S+)', httpx2.get(f"{url}/metrics").text)
    return sum(map(float, counts))


def test_a_full_queue_is_429_at_once_and_the_admitted_are_answered(artifact: Path, slow: threading.Event) -> None:
    with running(artifact, max_queue_tokens=12) as url:
        with ThreadPoolExecutor() as pool:
            # 4 tokens each: three in the queue, and in work what came before the lanes had woken, mostly one.
            asked = pool.submit(gather, url, ["w1 w2"] * 20)
            deadline = time.monotonic() + 8
            while refusals(url) < 12 and time.monotonic() < deadline:  # they do not wait for those that are held
                time.sleep(0.02)
            slow.set()
            replies = asked.result()
        refused = [reply for reply in replies if reply.status_code == 429]
        admitted = [reply for reply in replies if reply.status_code == 200]
        assert 3 <= len(admitted) <= 8
        assert len(admitted) + len(refused) == 20
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
        assert ask(url).status_code == 200


def test_too_many_requests_at_a_time_are_429(artifact: Path, slow: threading.Event) -> None:
    with running(artifact, max_requests=3) as url:
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(gather, url, ["w1"] * 10)
            deadline = time.monotonic() + 8
            while refusals(url) < 7 and time.monotonic() < deadline:
                time.sleep(0.02)
            slow.set()
            statuses = [reply.status_code for reply in asked.result()]
        assert sorted(statuses) == [200] * 3 + [429] * 7
        assert ask(url).status_code == 200


def test_what_is_batched_together_does_not_change_an_answer(artifact: Path, url: str) -> None:
    random = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in random.integers(0, 20, random.integers(1, 7))) for _ in range(100)]
    alone = Engine.load(artifact, device="cpu", threads=1)
    for text, reply in zip(texts, gather(url, texts), strict=True):
        (expected,) = alone.predict([text])
        got = {entry["label"]: entry["score"] for entry in reply.json()}
        assert [got[label] for label in SINGLE.labels] == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_model_that_fails_is_424(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(artifact) as url:
        monkeypatch.setattr("kdc.serving.engine.passes.pad", lambda encodings, info: {})
        reply = ask(url)
        monkeypatch.undo()
        assert (reply.status_code, reply.json()["error_type"]) == (424, "Inference")
        assert reply.headers["x-artifact"] == load_manifest(artifact).sha256[:16]
        assert ask(url).status_code == 200


def test_metrics_count_and_their_labels_stay_few(url: str) -> None:
    ask(url, "w1 w2")
    for number in range(10):
        httpx2.get(f"{url}/path-{number}")
        httpx2.post(f"{url}/v2/models/model-{number}/infer", json={})
    text = httpx2.get(f"{url}/metrics").text
    assert "path-" not in text
    assert "model-" not in text
    assert 'kdc_requests_total{route="/predict",status="200"}' in text
    assert 'kdc_requests_total{route="none",status="404"} 10.0' in text
    assert "kdc_predictions_total{label=" in text
    for name in (
        "kdc_request_seconds",
        "kdc_queue_seconds",
        "kdc_inference_seconds",
        "kdc_batch_tokens",
        "kdc_batch_rows",
    ):
        assert f"{name}_bucket" in text


def test_no_text_key_or_header_is_logged(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    headers = {"Authorization": f"Bearer {KEY}", "X-Private": "pr1vate-header"}
    with caplog.at_level(logging.DEBUG), running(artifact, api_key_env="MY_KEY", max_texts=2) as url:
        monkeypatch.setattr("kdc.serving.http.api.tei.labelled", lambda *_: 1 / 0 if secret_in_sight() else [])
        for body in (
            '{"inputs": "s3ns1tive"}',
            '{"inputs": "s3ns1tive',
            '{"inputs": ["s3ns1tive", "s3ns1tive"]}',
            '{"inputs": [["s3ns1tive"], ["s3ns1tive"], ["s3ns1tive"]]}',
            '{"s3ns1tive": 1}',
        ):
            with connect(url) as client:
                lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
                client.sendall(raw(body.encode(), extra=lines))
                client.recv(4096)
    printed = capfd.readouterr()
    logged = "\n".join(record.getMessage() + str(record.exc_text) for record in caplog.records)
    for secret in ("s3ns1tive", KEY, "pr1vate-header"):
        assert secret not in logged + printed.out + printed.err
    assert "ZeroDivisionError" in logged  # the log says what failed


def secret_in_sight() -> bool:
    """Makes every answer fail, with a text in the frame."""
    return True


def test_half_of_a_headers_block_holds_nothing_up(url: str) -> None:
    with connect(url) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        began = time.perf_counter()
        assert ask(url).status_code == 200
        assert time.perf_counter() - began < 5
