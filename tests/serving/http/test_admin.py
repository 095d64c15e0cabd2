"""Probes and metrics on a port of their own: answered while the event loop is not, and saying no where it is stuck."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest
from bag_models import write_artifact
from live import free_port, running

from kdc.serving.http import admin


@pytest.fixture
def ports(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, str, threading.Event]]:
    """The service's address, the other port's, and an event for which a request to `/classify` holds the event loop."""
    held = threading.Event()
    monkeypatch.setattr("kdc.serving.http.api.inference.within_limits", lambda *_: held.wait(20))
    port = free_port()
    with running(write_artifact(tmp_path_factory.mktemp("artifact")), admin_port=port) as url:
        yield url, f"http://127.0.0.1:{port}", held
        held.set()


def test_it_answers_while_the_event_loop_does_not(
    ports: tuple[str, str, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, probed, held = ports
    assert {path: httpx2.get(probed + path).status_code for path in ("/livez", "/readyz", "/metrics", "/predict")} == {
        "/livez": 200,
        "/readyz": 200,
        "/metrics": 200,
        "/predict": 404,
    }
    assert "kdc_requests_total" in httpx2.get(f"{probed}/metrics").text
    asking = threading.Thread(target=lambda: httpx2.post(f"{url}/classify", json={"texts": ["w1"]}, timeout=30))
    asking.start()
    time.sleep(0.3)
    with pytest.raises(httpx2.TimeoutException):
        httpx2.get(f"{url}/health", timeout=0.2)
    assert httpx2.get(f"{probed}/readyz", timeout=5).status_code == 200
    assert httpx2.get(f"{probed}/livez", timeout=5).status_code == 200
    monkeypatch.setattr(admin, "_STUCK_S", 1.0)
    time.sleep(1.2)
    assert httpx2.get(f"{probed}/livez", timeout=5).status_code == 503
    held.set()
    asking.join()
    deadline = time.monotonic() + 20
    while httpx2.get(f"{probed}/livez", timeout=5).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_head_is_read_only_so_far(ports: tuple[str, str, threading.Event]) -> None:
    """Would catch heads of 6.5 MB, which http.server reads: 64 connections took the memory of the service."""
    address = ("127.0.0.1", int(ports[1].rpartition(":")[2]))
    with socket.create_connection(address, timeout=20) as client, contextlib.suppress(ConnectionError):
        client.sendall(b"GET /readyz HTTP/1.1\r\na: " + b"x" * 4 * admin._HEAD_BYTES)  # it does not end
        assert client.recv(64) == b""


def test_connections_that_say_little_do_not_hold_it(
    ports: tuple[str, str, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a limit of time alone: who sends a byte now and then held all places."""
    _, probed, _ = ports
    monkeypatch.setattr(admin, "_SECONDS", 60.0)
    slow = [socket.create_connection(("127.0.0.1", int(probed.rpartition(":")[2]))) for _ in range(160)]
    for client in slow[::2]:
        with contextlib.suppress(OSError):  # of one that was ended
            client.sendall(b"G")
    for _ in range(40):
        assert httpx2.get(f"{probed}/readyz", timeout=5).status_code == 200
    for client in slow:
        client.close()


def test_no_burst_of_connections_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch connections that are ended later than others come: half of a burst stayed open."""
    monkeypatch.setattr(admin, "most_probes", lambda: 8)
    monkeypatch.setattr(admin, "_SECONDS", 60.0)
    held = threading.Event()
    port = free_port()
    server = admin._Server(port, {"/wait": lambda: (200 if held.wait(20) else 500, "text/plain", b"")}, shared=False)
    with contextlib.closing(server), contextlib.ExitStack() as stack:
        first = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        first.sendall(b"GET /wait HTTP/1.1\r\n\r\n")  # the loop accepts nothing, so that the others come at once
        time.sleep(0.2)
        burst = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=0.05)) for _ in range(200)]
        held.set()
        assert first.recv(12) == b"HTTP/1.1 200"
        assert httpx2.get(f"http://127.0.0.1:{port}/", timeout=20).status_code == 404  # it came last
        assert sum(map(_is_open, burst)) <= 8


def _is_open(client: socket.socket) -> bool:
    try:
        return client.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionError:
        return False


def test_a_head_has_its_time_as_a_whole(
    ports: tuple[str, str, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a limit of time for each read: a byte now and then held a place for ever."""
    monkeypatch.setattr(admin, "_SECONDS", 1.0)
    with socket.create_connection(("127.0.0.1", int(ports[1].rpartition(":")[2]))) as client:
        client.settimeout(0.1)
        deadline = time.monotonic() + 20
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < deadline:
                client.sendall(b"G")
                with contextlib.suppress(TimeoutError):
                    assert client.recv(1) == b""
                    return
        assert time.monotonic() < deadline
