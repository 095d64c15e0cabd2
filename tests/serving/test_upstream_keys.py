"""Whose key goes upstream, who gets local answers, and that nobody but the operator chooses where requests go."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import pytest
from live import connect, running
from upstreams import HALF, KNOWN, NAMES, PATHS, SURE, UNSURE, asked, is_error_of, post, write_artifacts

from benchmarks.serving.stub import in_a_thread
from benchmarks.serving.stub_answers import DECISIONS, SYSTEM_ONE
from benchmarks.serving.stub_connection import Stub
from kdc.common.errors import InputError
from kdc.serving.http.registry import verify
from kdc.serving.http.settings import ServeSettings

KEY, OTHER = "Bearer ONE-S3CRET", "Bearer TWO-S3CRET"
Start = Callable[..., contextlib.AbstractContextManager[str]]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_artifacts(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture
def stub() -> Iterator[Stub]:
    with in_a_thread(Stub()) as stub:
        yield stub


@pytest.fixture
def start(artifacts: str, stub: Stub, tmp_path: Path) -> Start:
    """Starts a service in front of the stub, whose settings may name another address."""

    def start(**settings: Any) -> contextlib.AbstractContextManager[str]:
        return running(artifacts, **{"upstream": stub.url, "audit": 0, "state_dir": str(tmp_path)} | settings)

    return start


def source(url: str, key: str | None, text: str = SURE[0], path: str = SYSTEM_ONE) -> str:
    headers = {} if key is None else {"authorization": key}
    reply = post(url, path, asked(path, text, KNOWN), **headers)
    return reply.headers["x-kdc-source"] if reply.status_code == 200 else str(reply.status_code)


def test_a_key_gets_local_answers_once_the_upstream_took_it(start: Start, stub: Stub) -> None:
    with start(forward_key=True) as url:
        assert [source(url, KEY), source(url, KEY)] == ["upstream", "local"]
        assert [source(url, OTHER), source(url, None), source(url, None)] == ["upstream"] * 3
        assert source(url, OTHER, path=DECISIONS) == "local"
    assert dict(stub.keys) == {KEY: 1, OTHER: 1, "": 2}


@pytest.mark.parametrize("path", PATHS)
def test_a_refused_key_gets_no_local_answer(start: Start, stub: Stub, path: str) -> None:
    stub.behaviour.keys = frozenset({KEY})
    with start(forward_key=True) as url:
        assert [source(url, OTHER, path=path), source(url, OTHER, path=path), source(url, None, path=path)] == [
            "401"
        ] * 3
        assert [source(url, KEY, path=path), source(url, KEY, path=path)] == ["upstream", "local"]
        direct = httpx2.post(stub.url + path, json=asked(path, SURE[0], KNOWN), headers={"authorization": OTHER})
        reply = post(url, path, asked(path, SURE[0], KNOWN), authorization=OTHER)
        assert (reply.status_code, reply.content) == (401, direct.content)
        stub.behaviour.keys = frozenset()  # it is withdrawn; the next question that goes upstream tells it
        assert [source(url, KEY, UNSURE[0], path), source(url, KEY, path=path)] == ["401", "401"]


def test_a_route_that_asks_for_no_key_accepts_none(start: Start, stub: Stub) -> None:
    """Would catch local answers for any key that the upstream's public pages were asked with."""
    with start(forward_key=True) as url:
        assert httpx2.get(f"{url}/v1/status", headers={"authorization": OTHER}).status_code == 200
        stub.behaviour.keys = frozenset({KEY})
        assert source(url, OTHER) == "401"


@pytest.mark.parametrize("fault", ["500", "429", "422"])
def test_what_says_nothing_of_a_key_accepts_none(start: Start, stub: Stub, fault: str) -> None:
    stub.behaviour.faults = {fault: 1.0}
    with start(forward_key=True, when_upstream_fails="answer") as url:
        assert {source(url, KEY) for _ in range(3)} <= {"422", "429", "502"}


@pytest.mark.parametrize("path", PATHS)
def test_the_services_own_key_is_refused_as_a_failure(
    start: Start, stub: Stub, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDC_UPSTREAM_KEY", "OWN-S3CRET")
    stub.behaviour.keys = frozenset()
    with start() as url:
        reply = post(url, path, asked(path, HALF[0], NAMES), authorization=KEY)
        assert reply.status_code == 502
        assert is_error_of(path, reply.content)
        assert "S3CRET" not in reply.text
        for _ in range(6):  # the breaker stays closed: other callers would not know why
            assert source(url, KEY, UNSURE[0]) == "502"
    assert set(stub.keys) == {"Bearer OWN-S3CRET"}


def test_other_routes_spend_no_key_for_anybody(start: Start, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDC_UPSTREAM_KEY", "OWN-S3CRET")
    with start() as url:
        assert httpx2.get(f"{url}/v1/files").status_code == 404
    assert not stub.asked


@pytest.mark.parametrize("other", ["--api-key-env", "KDC_UPSTREAM_KEY"])
def test_two_keys_of_one_request_are_refused_at_the_start(
    artifacts: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLERS_KEY" if other == "--api-key-env" else other, "S3CRET")
    name = "CALLERS_KEY" if other == "--api-key-env" else None
    settings = ServeSettings(artifact=artifacts, upstream="https://a.example", forward_key=True, api_key_env=name)
    with pytest.raises(InputError, match="one key") as refused:
        verify(settings, hashes=False)
    assert refused.value.given == f"--forward-key and {other}"


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1"])
def test_a_name_of_a_private_address_is_not_asked(
    start: Start, stub: Stub, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(stub.url.rpartition(":")[2])

    async def resolve(self: Any, host: str, port: int = 0, family: int = socket.AF_INET) -> list[Any]:
        return [{"hostname": host, "host": address, "port": port, "family": 2, "proto": 0, "flags": 0}]

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", resolve)
    with start(upstream=f"http://inside.example:{port}") as url:
        reply = post(url, SYSTEM_ONE, asked(SYSTEM_ONE, UNSURE[0], KNOWN))
        assert reply.status_code == 502
        assert address not in reply.text
        assert source(url, None) == "local"
    assert stub.opened == 0


def test_localhost_is_asked(start: Start, stub: Stub) -> None:
    with start(upstream=stub.url.replace("127.0.0.1", "localhost")) as url:
        assert source(url, None, UNSURE[0]) == "upstream"


def test_no_request_chooses_where_it_goes(start: Start, stub: Stub) -> None:
    """Headers, targets and bodies that name another server, or climb out of the upstream's path."""
    with in_a_thread(Stub()) as other, start(upstream=f"{stub.url}/prefix/v1") as url:
        place = other.url.removeprefix("http://")
        headers = {"host": place, "x-forwarded-host": place, "forwarded": f"host={place}", "x-upstream": other.url}
        body = asked(SYSTEM_ONE, UNSURE[0], KNOWN, base_url=other.url, upstream=other.url, model=other.url)
        post(url, SYSTEM_ONE, body, **headers)
        for target in (
            f"{other.url}/v1/systemone",
            f"//{place}/v1/files",
            f"/v1/@{place}/",
            f"/v1//{place}/",
            "/v1/../admin",
            "/v1/%2e%2e/admin",
            "/v1/..%2fadmin",
            "/v1/x\\..\\..\\admin",
            "/v1/x/../../admin",
            f"/v1/files?next={other.url}",
        ):
            for host in (place, "a?", "a#", f"{place}/x?"):
                _raw(url, f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
        assert (other.opened, list(other.asked)) == (0, [])
    assert all(target.startswith("/prefix/v1/") for target in stub.targets), stub.targets
    assert not [target for target in stub.targets if "admin" in target], stub.targets
    assert {request.headers["host"] for request in stub.asked} == {stub.url.removeprefix("http://")}


def test_hop_headers_and_cookies_stay_here(start: Start, stub: Stub) -> None:
    with start() as url:
        headers = {"cookie": "a=b", "x-secret": "S3CRET", "referer": "http://inside/", "x-forwarded-for": "10.0.0.1"}
        post(url, SYSTEM_ONE, asked(SYSTEM_ONE, UNSURE[0], KNOWN), **headers)
        httpx2.get(f"{url}/v1/files", headers=headers)
    assert len(stub.asked) == 2
    for request in stub.asked:
        assert not headers.keys() & request.headers.keys()


def test_a_stream_may_last_longer_than_a_request(start: Start, stub: Stub) -> None:
    """Would catch a chat that ends in the middle, after the seconds that a local answer may take."""
    stub.behaviour.event_s = 0.3
    with start(timeout_s=1.0) as url:
        began = time.monotonic()
        reply = httpx2.post(f"{url}/v1/chat/completions", json={"stream": True, "messages": []}, timeout=10)
        assert reply.text.endswith("data: [DONE]\n\n")
        assert time.monotonic() - began > 1.5


def _raw(url: str, text: str) -> None:
    with connect(url) as link:
        link.sendall(text.encode())
        while link.recv(65536):
            pass
