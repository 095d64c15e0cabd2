"""A clean end: SIGTERM first says "not ready" for a while, answers what was admitted, and only then stops the server.

Load balancers need that time to take the instance out. The server around the app (uvicorn, alone or under BentoML)
keeps listening meanwhile, and new requests are told to go elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

# Set by `kdc serve`: a folder in which it and its workers tell each other how far they are.
RUNTIME_DIR = "KDC_RUNTIME_DIR"
SUPERVISOR = "KDC_SUPERVISOR"  # also set by `kdc serve`: its process id
_FRESH_S = 0.5  # for the request of a connection that has sent none yet
STOPPING, STARTED, FAILED = "stopping", "started", "failed.json"


class Drain:
    """Takes SIGTERM over from the server.

    Args:
        delay_s: seconds of refusing before it stops listening.
        bound_s: seconds that admitted requests get after that.
        workers: processes that share the listening socket.
    """

    def __init__(self, delay_s: float, bound_s: float, workers: int) -> None:
        self.draining = False
        self._delay = delay_s
        self._bound = bound_s
        self._workers = workers
        self._task: asyncio.Task[None] | None = None

    def install(self, busy: Callable[[], int]) -> None:
        """Take SIGTERM over; called in the event loop, after the server set its own handler.

        Args:
            busy: how many requests are in work.
        """
        if threading.current_thread() is not threading.main_thread():
            return  # a server in a thread, as in tests, gets no signals
        loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)

        def start() -> None:
            if self._task is None:
                self.draining = True
                self._task = loop.create_task(self._drain(busy, before))

        def handler(_: int, __: FrameType | None) -> None:
            loop.call_soon_threadsafe(start)

        signal.signal(signal.SIGTERM, handler)

    async def _drain(self, busy: Callable[[], int], before: Any) -> None:
        server = getattr(before, "__self__", None)
        await asyncio.sleep(self._delay)
        await self._stop_listening(server)
        await _until_heard(server)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._bound):
                while busy():
                    await asyncio.sleep(0.01)
        signal.signal(signal.SIGTERM, before)
        os.kill(os.getpid(), signal.SIGTERM)

    async def _stop_listening(self, server: Any) -> None:
        """Refuse new connections from here on, where the whole service stops.

        The socket is shared with the supervisor: only closed here, it would still take connections that nobody
        answers. It is shut down for all processes, once each has stopped accepting.
        """
        folder = os.environ.get(RUNTIME_DIR)
        if folder is None or not (Path(folder) / STOPPING).exists():
            return
        copies = []
        for listener in getattr(server, "servers", ()):
            copies += [socket.socket(fileno=os.dup(each.fileno())) for each in listener.sockets]
            listener.close()
        if self._workers > 1:
            await asyncio.sleep(0.05)
        for copy in copies:
            await _take_what_waits(copy, server)
            with contextlib.suppress(OSError):  # another worker was first
                copy.shutdown(socket.SHUT_RD)
            copy.close()


async def _take_what_waits(listener: socket.socket, server: Any) -> None:
    """Connections that the kernel took while nobody was accepting: a shutdown would reset them, so they are told."""
    loop, config = asyncio.get_running_loop(), server.config
    listener.setblocking(False)
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # none is left, or another worker shut it down
            return
        await loop.connect_accepted_socket(
            lambda: config.http_protocol_class(
                config=config, server_state=server.server_state, app_state=server.lifespan.state
            ),
            sock=connection,
        )


async def _until_heard(server: Any) -> None:
    """Until connections that are fresh have sent their request, and were told: closed now, they would be reset."""
    connections = getattr(getattr(server, "server_state", None), "connections", ())
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FRESH_S):
            while any(getattr(connection, "cycle", True) is None for connection in connections):
                await asyncio.sleep(0.01)
