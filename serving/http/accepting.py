"""Accepts all connections that wait in the kernel, not one at a time; how many connections a process can have.

uvloop 0.23 accepts one connection in each turn of its loop. With 900 clients that ask again and again a turn lasts a
tenth of a second, and new clients, probes among them, would wait for many seconds.
"""

import asyncio
import contextlib
import math
import resource
import socket
import sys
from typing import Any

from kdc.serving.http.settings import ServeSettings

_MOST = 64  # connections of a turn
_SPARE_FILES = 64  # descriptors that are no connections
_FEWEST_GRPC = 64  # connections: with fewer a neighbour's probe might get none
_MOST_PROBES = 512
_TO_REFUSE = 8  # connections beyond the most that there may be: each takes a descriptor until it is refused


class Accepting:
    """Takes further connections once the server has accepted one, up to so many. For a process that listens alone: of
    several, one would take what the others have time for."""

    def __init__(self, server: Any, most_connections: int) -> None:
        self._server, self._most_connections = server, most_connections  # uvicorn's server, in this event loop
        self._listeners: list[socket.socket] = []  # copies of the server's own, which uvloop does not let others use
        self._has_taken = False  # in this turn
        self._handed: set[asyncio.Task[Any]] = set()  # connections that the protocol does not have yet

    def more(self) -> None:
        """Take what waits, once in a turn of the loop."""
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
            task.exception()  # if the client has left already; without this call asyncio would log it


def listeners_of(server: Any) -> list[socket.socket]:
    """Copies of the sockets on which a uvicorn server listens; to be closed by the caller."""
    servers = getattr(server, "servers", ())  # it has none before its start
    return [socket.fromfd(own.fileno(), own.family, own.type) for each in servers for own in each.sockets]


def take_what_waits(listener: socket.socket, server: Any, most: float = math.inf) -> list[asyncio.Task[Any]]:
    """Accept at most so many of the connections that wait, and hand them to the server's protocol, each by a task."""
    loop, config = asyncio.get_running_loop(), server.config
    listener.setblocking(False)
    connections: list[socket.socket] = []
    with contextlib.suppress(OSError):  # none is left, another worker shut it down, or there are no descriptors
        while len(connections) < most:
            connections.append(listener.accept()[0])

    def protocol() -> Any:
        state, app_state = server.server_state, server.lifespan.state
        return config.http_protocol_class(config=config, server_state=state, app_state=app_state)

    return [loop.create_task(loop.connect_accepted_socket(protocol, sock=own, ssl=config.ssl)) for own in connections]


def most_connections(settings: ServeSettings) -> int:
    """How many HTTP connections this process can have: the setting, or as many as its file descriptors allow beside
    gRPC's."""
    grpc = 0 if settings.grpc_address is None else most_grpc_connections(settings)
    return max(1, min(settings.max_connections, _descriptors() - _SPARE_FILES - grpc))


def most_grpc_connections(settings: ServeSettings) -> int:
    """How many gRPC connections this process can have: a sixteenth of the requests that may be in work, at least 64 and
    at most half of its file descriptors.

    Each has up to 16 calls, and a call that is refused takes 25 kB and a third of a millisecond too."""
    most = max(_FEWEST_GRPC, settings.max_requests // 16)
    return max(1, min(settings.max_connections, most, (_descriptors() - _SPARE_FILES) // 2))


def most_probes() -> int:
    """How many connections the port for probes can have: few of this process's file descriptors, but enough to give a
    probe time to ask before others take its place."""
    return max(_SPARE_FILES // 2, min(_MOST_PROBES, _descriptors() // 16))


def _descriptors() -> int:
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if descriptors == resource.RLIM_INFINITY else descriptors
