"""Drains the service after SIGTERM (docs/explanation/scheduling.md)."""

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

_FRESH_S = 0.5  # for a new connection's first request


@dataclass(eq=False)
class Drain:
    delay_s: float  # seconds of 503 before listening ends
    bound_s: float  # then, most seconds for admitted requests
    workers: int  # that share the socket
    _task: asyncio.Task[None] | None = None

    @property
    def draining(self) -> bool:
        return self._task is not None

    def install(self, busy: Callable[[], int]) -> None:
        """Call it in the event loop, after the server set its SIGTERM handler."""
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread gets signals
        loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)

        def start() -> None:
            if self._task is None:
                self._task = loop.create_task(self._drain(busy, before))

        loop.add_signal_handler(signal.SIGTERM, start)

    async def _drain(self, busy: Callable[[], int], before: Any) -> None:
        server = getattr(before, "__self__", None)
        connections = getattr(getattr(server, "server_state", None), "connections", ())  # uvicorn's protocols
        await asyncio.sleep(self.delay_s)
        await self._stop_listening(server)
        with contextlib.suppress(TimeoutError):  # closing new connections now would reset them
            async with asyncio.timeout(_FRESH_S):
                while any(getattr(connection, "cycle", True) is None for connection in connections):
                    await asyncio.sleep(0.01)
        try:
            async with asyncio.timeout(self.bound_s):
                while busy() or any(connection.transport.get_write_buffer_size() for connection in connections):
                    await asyncio.sleep(0.01)
        except TimeoutError:  # uvicorn would wait for ever
            for connection in list(connections):
                connection.transport.abort()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)
        os.kill(os.getpid(), signal.SIGTERM)

    async def _stop_listening(self, server: Any) -> None:
        """If only workers closed the socket, the supervisor's copy would accept connections that nobody answers."""
        folder = runtime.directory()
        if folder is None or not (folder / runtime.STOPPING).exists():
            return
        copies = listeners_of(server)
        for listener in getattr(server, "servers", ()):  # none before its start
            listener.close()
        if self.workers > 1:
            await asyncio.sleep(0.05)
        for copy in copies:
            # Waiting connections get a 503: the shutdown would reset them.
            taken = take_what_waits(copy, server)
            with contextlib.suppress(OSError):  # another worker was first
                copy.shutdown(socket.SHUT_RD)
            copy.close()
            await asyncio.gather(*taken, return_exceptions=True)  # a client may have left
