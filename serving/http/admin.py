"""Probes and metrics on a port and a thread of their own, where they are answered whatever the load.

On the service's own port they wait for the event loop, and a new connection for hundreds of others: a liveness probe
that gives up there would restart a service for being busy. This port is for the kubelet and for Prometheus; it asks for
no token, and should not be reachable from outside.
"""

import asyncio
import contextlib
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus

from kdc.common.errors import InputError
from kdc.serving.http.accepting import most_probes
from kdc.serving.http.metrics import CONTENT_TYPE, Metrics

_STUCK_S = 30.0  # seconds without a turn of the event loop after which the process is taken for stuck
_BEAT_S = 0.5
_WAITING = 4096  # connections that wait in the kernel; beyond them a client asks again after a second
_SECONDS = 5.0  # from a connection's start to the end of its answer
_HEAD_BYTES = 8192
_TEXT = "text/plain"

Answer = tuple[int, str, bytes]  # status, content type, body

log = logging.getLogger("kdc.serve")


@dataclass(slots=True, eq=False)
class _Client:
    connection: socket.socket
    until: float
    head: bytes = b""  # what came so far
    unsent: bytes | memoryview = b""  # what is left of the answer
    waits_for: int = 0  # events


class _Server:
    """Answers in one thread, which waits for no client. A thread for each would wait for the interpreter's lock many
    times, and let its client hold one of a few places."""

    def __init__(self, port: int, answers: dict[str, Callable[[], Answer]], *, shared: bool) -> None:
        self._answers, self._most = answers, most_probes()
        self._open: dict[_Client, None] = {}  # the oldest first
        self._ended = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("", port), backlog=_WAITING, reuse_port=shared)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        threading.Thread(target=self._serve, name="kdc-admin", daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self._ended.set()
        self._listener.close()

    def _serve(self) -> None:
        while not self._ended.is_set():
            ready = [key.data for key, _ in self._selector.select(_BEAT_S)]
            for client in filter(None, ready):
                self._turn(client)
            if None in ready:  # last: nobody who has asked ends for another
                self._accept()
            while self._open and next(iter(self._open)).until < time.monotonic():
                self._end(next(iter(self._open)))
        for client in list(self._open):
            self._end(client)

    def _accept(self) -> None:
        """Take connections that wait, and answer those that have asked. If there are too many, the oldest one ends."""
        for _ in range(self._most):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # no descriptors are left
                if self._open:
                    self._end(next(iter(self._open)))
                self._ended.wait(0.01)
                return
            connection.setblocking(False)
            client = _Client(connection, time.monotonic() + _SECONDS)
            self._open[client] = None
            self._turn(client)
            if len(self._open) > self._most:
                self._end(next(iter(self._open)))

    def _turn(self, client: _Client) -> None:
        """Read what a client sent, or send what is left of its answer; then wait for more, or end."""
        try:
            is_ended = self._sends(client) if client.unsent else self._reads(client)
        except BlockingIOError:
            is_ended = False
        except OSError:  # the client has left
            is_ended = True
        if is_ended:
            self._end(client)
            return
        events = selectors.EVENT_WRITE if client.unsent else selectors.EVENT_READ
        if not client.waits_for:
            self._selector.register(client.connection, events, client)
        elif client.waits_for != events:
            self._selector.modify(client.connection, events, client)
        client.waits_for = events

    def _sends(self, client: _Client) -> bool:
        client.unsent = client.unsent[client.connection.send(client.unsent) :]
        return not client.unsent

    def _reads(self, client: _Client) -> bool:
        sent = client.connection.recv(_HEAD_BYTES)
        client.head += sent
        if b"\r\n\r\n" not in client.head:
            return not sent or len(client.head) > _HEAD_BYTES
        head, body = self._answer(client.head)
        sent_of_body = client.connection.sendmsg([head, body]) - len(head)
        client.unsent = memoryview(body)[max(0, sent_of_body) :]
        return sent_of_body < 0 or not client.unsent  # who takes not even a head is no probe

    def _answer(self, head: bytes) -> tuple[bytes, bytes]:
        path = head.split(b" ", 2)[1].partition(b"?")[0].decode("latin-1") if head.startswith(b"GET ") else ""
        try:
            status, kind, body = self._answers[path]() if path in self._answers else (404, _TEXT, b"")
        except Exception:
            log.exception("a probe could not be answered")
            status, kind, body = 500, _TEXT, b""
        first = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"
        lines = first, f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close", "", ""
        return "\r\n".join(lines).encode(), body

    def _end(self, client: _Client) -> None:
        del self._open[client]
        if client.waits_for:
            self._selector.unregister(client.connection)
        client.connection.close()


@contextlib.contextmanager
def admin_port(port: int, *, is_ready: Callable[[], bool], metrics: Metrics, shared: bool) -> Iterator[None]:
    """Answer `/livez`, `/readyz` and `/metrics` on a port for as long as the context lasts. To be used in the event
    loop.

    Args:
        port: to listen on, at all addresses.
        is_ready: what `/readyz` says.
        metrics: what `/metrics` shows.
        shared: whether other workers listen there too; each connection is then one of theirs or ours.

    Raises:
        InputError: the port is taken.
    """
    turned = time.monotonic()  # when the event loop had its last turn

    async def beat() -> None:
        nonlocal turned
        while True:
            turned = time.monotonic()
            await asyncio.sleep(_BEAT_S)

    def said(holds: bool) -> Answer:
        return (200, _TEXT, b"yes\n") if holds else (503, _TEXT, b"no\n")

    answers = {
        "/livez": lambda: said(time.monotonic() - turned < _STUCK_S),
        "/readyz": lambda: said(is_ready()),
        "/metrics": lambda: (200, CONTENT_TYPE, metrics.exposition()),
    }
    try:
        server = _Server(port, answers, shared=shared)
    except OSError as error:
        raise InputError(
            f"cannot listen for probes there: {error.strerror}", given=port, remedy="set KDC_ADMIN_PORT to another port"
        ) from error
    beating = asyncio.get_running_loop().create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
        server.close()
