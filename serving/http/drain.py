"""A clean end: after SIGTERM the service says "not ready" for a while, answers what it admitted, and only then stops.

Load balancers need this time to take the instance out. Meanwhile the server around the app (uvicorn, alone or under
BentoML) keeps listening, and new requests are refused with 503.
"""

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kdc.serving.http import runtime
from kdc.serving.http.accepting import listeners_of, take_what_waits

_FRESH_S = 0.5  # seconds that a new connection gets to send its first request


@dataclass(eq=False)
class Drain:
    """Handles SIGTERM in place of the server."""

    delay_s: float  # seconds of refusing requests before it stops listening
    bound_s: float  # most seconds that admitted requests get after that
    workers: int  # processes that share the listening socket
    _task: asyncio.Task[None] | None = None

    @property
    def draining(self) -> bool:
        """Whether SIGTERM has come."""
        return self._task is not None

    def install(self, busy: Callable[[], int]) -> None:
        """Replace the server's handler of SIGTERM, once the server has set it. `busy` returns how many requests are in
        work. To be called in the event loop."""
        if threading.current_thread() is not threading.main_thread():
            return  # signals reach the main thread only; tests run servers in other threads
        loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)

        def start() -> None:
            if self._task is None:
                self._task = loop.create_task(self._drain(busy, before))

        loop.add_signal_handler(signal.SIGTERM, start)

    async def _drain(self, busy: Callable[[], int], before: Any) -> None:
        server = getattr(before, "__self__", None)
        connections = getattr(getattr(server, "server_state", None), "connections", ())  # of uvicorn: its protocols
        await asyncio.sleep(self.delay_s)
        await self._stop_listening(server)
        with contextlib.suppress(TimeoutError):  # a connection closed before its first request was refused is reset
            async with asyncio.timeout(_FRESH_S):
                while any(getattr(connection, "cycle", True) is None for connection in connections):
                    await asyncio.sleep(0.01)
        try:
            async with asyncio.timeout(self.bound_s):
                while busy() or any(connection.transport.get_write_buffer_size() for connection in connections):
                    await asyncio.sleep(0.01)
        except TimeoutError:  # a client that does not read: uvicorn would wait for it without an end
            for connection in list(connections):
                connection.transport.abort()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)
        os.kill(os.getpid(), signal.SIGTERM)

    async def _stop_listening(self, server: Any) -> None:
        """Refuse new connections, if the whole service stops and not this worker alone.

        The supervisor has the socket too. If this process only closed it, the socket would still take connections, and
        nobody would answer them. So it is shut down for all processes, once no worker accepts.
        """
        folder = runtime.directory()
        if folder is None or not (folder / runtime.STOPPING).exists():
            return
        copies = listeners_of(server)
        for listener in getattr(server, "servers", ()):  # it has none before its start
            listener.close()
        if self.workers > 1:
            await asyncio.sleep(0.05)
        for copy in copies:
            # Those that wait get a 503; a shutdown alone would reset them. It follows at once: the refused ask again.
            taken = take_what_waits(copy, server)
            with contextlib.suppress(OSError):  # another worker was first
                copy.shutdown(socket.SHUT_RD)
            copy.close()
            await asyncio.gather(*taken, return_exceptions=True)  # one may have left already
