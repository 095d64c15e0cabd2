"""A thread for each artifact that looks at it and loads it, since the volume that it lies on may hang.

`asyncio.to_thread` would not do: the process could not end while a thread of its hangs. One thread for all loads of an
artifact also takes less memory, since the C library has a pool of freed memory for each.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

PATIENCE_S = 60.0  # what takes longer is told
Found = TypeVar("Found")


class Reader:
    """Reads in a thread of its own.

    Args:
        slow: called in the event loop when something has taken longer than `PATIENCE_S`. It is waited for all the same.
    """

    def __init__(self, slow: Callable[[], None]) -> None:
        self._slow = slow
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="kdc-reader", daemon=True)
        self._thread.start()

    async def read(self, read: Callable[[], Found]) -> Found:
        """What `read` returns; it raises nothing."""
        loop, ended, found = asyncio.get_running_loop(), asyncio.Event(), list[Found]()

        def run() -> None:
            found.append(read())
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(ended.set)

        self._jobs.put(run)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await ended.wait()
        except TimeoutError:
            self._slow()
            await ended.wait()
        return found.pop()

    async def close(self) -> None:
        """End the thread, once it has read what it reads now."""
        self._jobs.put(None)
        while self._thread.is_alive():  # polled: whoever cancels this must not wait for a thread that hangs
            await asyncio.sleep(0.01)

    def _work(self) -> None:
        for run in iter(self._jobs.get, None):
            run()
