"""Probes and metrics on a port and threads of their own, where they are answered whatever the load.

On the service's own port they wait for the event loop, and a new connection for hundreds of others: a liveness probe
that gives up there would restart a service for being busy. This port is for the kubelet and for Prometheus; it asks for
no token, and should not be reachable from outside.
"""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

from kdc.common.errors import InputError
from kdc.serving.http.metrics import CONTENT_TYPE, Metrics

_STUCK_S = 30.0  # seconds without a turn of the event loop after which the process is taken for stuck
_BEAT_S = 0.5
_MOST = 64  # connections at a time
_WAITING = 512  # that wait for a place
_LEAST_S = 0.05  # seconds of a connection before it ends for another: many times what a probe takes
_SECONDS = 2.0  # in which a client must send, or read, something
_MOST_HEAD = 16 * 1024  # bytes of a request; http.server itself takes 6.5 MB


class _Handler(BaseHTTPRequestHandler):
    timeout = _SECONDS
    server: "_Server"

    def setup(self) -> None:
        """Read the head, or the beginning of one that is too large."""
        super().setup()
        head = b""
        with self.rfile as sent:
            while (line := sent.readline(_MOST_HEAD - len(head))).strip():
                head += line
        self.rfile = BytesIO(head + b"\r\n")

    def do_GET(self) -> None:
        """Answer one of the three paths."""
        answer = self.server.answers.get(self.path.partition("?")[0])
        status, kind, body = (404, "text/plain", b"") if answer is None else answer()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Probes are not logged."""


class _Server(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False
    request_queue_size = _WAITING

    def __init__(self, port: int, answers: dict[str, Callable[[], tuple[int, str, bytes]]], *, shared: bool) -> None:
        self.answers = answers
        self.allow_reuse_port = shared
        self._open: dict[socket.socket, float] = {}  # by since when, the oldest first
        self._places = threading.Condition()
        super().__init__(("", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread. If there are too many connections, the oldest one ends."""
        with self._places:
            if len(self._open) >= _MOST:
                oldest, since = next(iter(self._open.items()))
                left_s = since + _LEAST_S - time.monotonic()
                if not self._places.wait_for(lambda: len(self._open) < _MOST, left_s):
                    del self._open[oldest]
                    with contextlib.suppress(OSError):  # its client has left
                        oldest.shutdown(socket.SHUT_RDWR)  # its thread reads the end, and closes it
            self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        with self._places:
            self._open.pop(request, None)
            self._places.notify()
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is nothing to log."""

    def server_bind(self) -> None:
        """Bind; without the look-up of this machine's name that http.server makes, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.allow_reuse_port:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()


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

    def said(holds: bool) -> tuple[int, str, bytes]:
        return (200, "text/plain", b"yes\n") if holds else (503, "text/plain", b"no\n")

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
    threading.Thread(target=server.serve_forever, name="kdc-admin", daemon=True).start()
    try:
        yield
    finally:
        beating.cancel()
        threading.Thread(target=server.shutdown, daemon=True).start()  # it waits for the other thread's next turn
        server.server_close()
