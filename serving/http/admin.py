"""Probes and metrics on their own port and thread: on a busy port a liveness probe may time out and cause a restart.

This port asks for no token: keep it unreachable from outside.
"""

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus

from kdc.common.errors import InputError
from kdc.serving.http.accepting import most_probes
from kdc.serving.http.metrics import CONTENT_TYPE, Metrics

_STUCK_S = 30.0  # event loop pause that fails `/livez`
_BEAT_S = 0.5
_WAITING = 4096  # connections that wait in the kernel
_SECONDS = 5.0  # longest connection
_HEAD_BYTES = 8192
_TEXT = "text/plain"

Answer = tuple[int, str, bytes]  # status, content type, body

log = logging.getLogger("kdc.serve")


class _Server:
    def __init__(self, port: int, answers: Mapping[str, Callable[[], Answer]], *, shared: bool) -> None:
        self._answers, self._most = answers, most_probes()
        self._open: dict[asyncio.Task[None], None] = {}  # oldest first
        self._listener = socket.create_server(("", port), backlog=_WAITING, reuse_port=shared)
        self._listener.setblocking(False)
        self._runner = asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)
        self._loop = self._runner.get_loop()
        self._accepting = self._loop.create_task(self._accept())
        threading.Thread(target=self._run, name="kdc-admin", daemon=True).start()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._accepting.cancel)

    def _run(self) -> None:
        with self._listener, self._runner:
            self._runner.run(asyncio.wait([self._accepting]))

    async def _accept(self) -> None:
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self._listener)
            except OSError:  # out of descriptors
                self._end_oldest()
                await asyncio.sleep(0.01)
                continue
            task = self._loop.create_task(self._serve(connection))
            self._open[task] = None
            task.add_done_callback(lambda task: self._open.pop(task, None))
            await asyncio.sleep(0)
            if len(self._open) > self._most:
                self._end_oldest()

    def _end_oldest(self) -> None:
        if self._open:
            task = next(iter(self._open))
            del self._open[task]  # a cancelled task ends later
            task.cancel()

    async def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):  # the client left or is late
            async with asyncio.timeout(_SECONDS):
                head = b""
                while b"\r\n\r\n" not in head:
                    piece = await self._loop.sock_recv(connection, _HEAD_BYTES)
                    head += piece
                    if not piece or len(head) > _HEAD_BYTES:
                        return
                head, body = self._answer(head)
                sent_of_body = connection.sendmsg([head, body]) - len(head)
                if sent_of_body >= 0:  # else no probe: a probe takes the head at once
                    await self._loop.sock_sendall(connection, memoryview(body)[sent_of_body:])

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


@contextlib.contextmanager
def admin_port(port: int, *, is_ready: Callable[[], bool], metrics: Metrics, shared: bool) -> Iterator[None]:
    """Enter it in the event loop. It listens at all IPv4 addresses. If workers share the port, any of them answers."""
    turned = time.monotonic()

    async def beat() -> None:
        nonlocal turned
        while True:
            turned = time.monotonic()
            await asyncio.sleep(_BEAT_S)

    def yes_or_no(holds: bool) -> Answer:
        return (200, _TEXT, b"yes\n") if holds else (503, _TEXT, b"no\n")

    answers = {
        "/livez": lambda: yes_or_no(time.monotonic() - turned < _STUCK_S),
        "/readyz": lambda: yes_or_no(is_ready()),
        "/metrics": lambda: (200, CONTENT_TYPE, metrics.exposition()),
    }
    try:
        server = _Server(port, answers, shared=shared)
    except OSError as error:
        remedy = "set KDC_ADMIN_PORT to another port"
        raise InputError(f"cannot listen for probes there: {error.strerror}", given=port, remedy=remedy) from error
    beating = asyncio.get_running_loop().create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
        server.close()
