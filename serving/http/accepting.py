"""Accepts all waiting connections at once, and bounds their number.

uvloop 0.23 accepts one a loop turn, so probes would wait for seconds behind busy clients.
"""

import asyncio
import contextlib
import math
import resource
import socket
import sys
from typing import Any

from kdc.serving.http.settings import ServeSettings

_MOST = 64  # per loop turn
_SPARE_FILES = 64  # descriptors for other uses
_FEWEST_GRPC = 64  # with fewer connections, one client could lock out probes
_MOST_PROBES = 512
_TO_REFUSE = 8  # above the limit; each takes a descriptor


class Accepting:
    """Only for a single worker: with several, a busy one would take connections from idle ones."""

    def __init__(self, server: Any, most_connections: int) -> None:
        self._server, self._most_connections = server, most_connections  # uvicorn's server, in this loop
        self._listeners: list[socket.socket] = []  # copies: uvloop's sockets refuse `accept`
        self._has_taken = False
        self._handed: set[asyncio.Task[Any]] = set()  # connections without a protocol yet

    def more(self) -> None:
        if self._has_taken:
            return
        self._has_taken = True
        asyncio.get_running_loop().call_soon(self._next_turn)
        if not self._listeners:
            self._listeners = listeners_of(self._server)
        for listener in self._listeners:
            open_now = len(self._server.server_state.connections) + len(self._handed)
            most = min(_MOST, self._most_connections + _TO_REFUSE - open_now)
            for task in take_what_waits(listener, self._server, most=most):
                self._handed.add(task)
                task.add_done_callback(self._ended)

    def _next_turn(self) -> None:
        self._has_taken = False

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._handed.discard(task)
        if not task.cancelled():
            task.exception()  # else asyncio logs that the client left


def listeners_of(server: Any) -> list[socket.socket]:
    """Copies of uvicorn's listening sockets; the caller closes them."""
    servers = getattr(server, "servers", ())  # none before its start
    return [socket.fromfd(own.fileno(), own.family, own.type) for each in servers for own in each.sockets]


def take_what_waits(listener: socket.socket, server: Any, most: float = math.inf) -> list[asyncio.Task[Any]]:
    """Accept waiting connections. A task hands each one to the server's protocol."""
    loop, config = asyncio.get_running_loop(), server.config
    listener.setblocking(False)
    connections: list[socket.socket] = []
    with contextlib.suppress(OSError):  # none left, or out of descriptors
        while len(connections) < most:
            connections.append(listener.accept()[0])

    def protocol() -> Any:
        state, app_state = server.server_state, server.lifespan.state
        return config.http_protocol_class(config=config, server_state=state, app_state=app_state)

    return [loop.create_task(loop.connect_accepted_socket(protocol, sock=own, ssl=config.ssl)) for own in connections]


def most_connections(settings: ServeSettings) -> int:
    """The setting, or fewer if descriptors are few."""
    grpc = 0 if settings.grpc_address is None else most_grpc_connections(settings)
    return max(1, min(settings.max_connections, _descriptors() - _SPARE_FILES - grpc))


def most_grpc_connections(settings: ServeSettings) -> int:
    """A connection has up to 16 calls. Even a refused call takes 25 kB and 0.3 ms."""
    most = max(_FEWEST_GRPC, settings.max_requests // 16)
    return max(1, min(settings.max_connections, most, (_descriptors() - _SPARE_FILES) // 2))


def most_probes() -> int:
    """So many that newer connections replace no probe too soon."""
    return max(_SPARE_FILES // 2, min(_MOST_PROBES, _descriptors() // 16))


def _descriptors() -> int:
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if descriptors == resource.RLIM_INFINITY else descriptors
