"""The worker processes of `kdc serve`. Workers that died are started again: the first at once, the next ones later and
later, and none for ever.

A worker that cannot start, as when its artifact is gone, would otherwise be started as fast as the machine can, while
clients wait for an answer that nobody will give.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from kdc.common.errors import KdcError
from kdc.serving.http import runtime

# What BentoML's supervisor starts for this service; the socket's descriptor follows.
_WORKER = (sys.executable, "-m", "_bentoml_impl.worker.service", "kdc.serving.service:Classifier")
_KILLED_S = 5.0  # seconds that a killed worker gets to end: its driver may hang
_RECENT_S = 60.0  # seconds for which a death counts
_WAITS_S = (0.0, 0.0, 1.0, 2.0, 4.0, 8.0)  # before a restart, by the number of recent deaths for each worker
_SEEN_S = 1.0  # seconds after which a worker that was to be started has been seen, unless it died at once
_FAILED_STARTS = 5  # of each worker, in a row: then the service ends


class Workers:
    """Processes that accept connections on one socket.

    Args:
        listener: the socket; it listens already.
        folder: of the service. The workers run in it, since the current folder may hold files that hide modules.
        count: how many there should be.
        environment: variables beyond those of this process.
    """

    def __init__(self, listener: socket.socket, folder: Path, count: int, environment: Mapping[str, str]) -> None:
        metrics = folder / "metrics"
        metrics.mkdir()
        of_service = {runtime.DIRECTORY: str(folder), runtime.SUPERVISOR: str(os.getpid())}
        self._environment = {**os.environ, **environment, **of_service, "PROMETHEUS_MULTIPROC_DIR": str(metrics)}
        self._listener, self._folder, self._count = listener, folder, count
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start as many as are missing."""
        for _ in range(self._count - len(self.running())):
            self._processes.append(
                subprocess.Popen(
                    [*_WORKER, "--fd", str(self._listener.fileno())],
                    cwd=self._folder,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[self._listener.fileno()],
                    start_new_session=True,  # Ctrl-C is for this process, which stops them
                )
            )

    def running(self) -> list[int]:
        """Process ids of those that run."""
        self._processes = [process for process in self._processes if process.poll() is None]
        return [process.pid for process in self._processes]

    def stop(self, bound_s: float) -> None:
        """Stop all, by force if they take longer than `bound_s`: a forward pass may hang."""
        for process in self._processes:
            process.terminate()
        self._wait(bound_s)
        for process in self._processes:
            process.kill()
        self._wait(_KILLED_S)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))


class Restarts:
    """Says when the dead workers of a service are to be started again.

    Args:
        folder: of the service, in which a worker notes that it is ready.
        workers: how many there should be.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        self._folder, self._workers = folder, workers
        self._alive: set[int] = set()
        self._deaths: list[float] = []
        self._failed = 0  # starts since the last worker that became ready
        self._asked: float | None = None  # when a start was due of which nothing is seen yet

    def due(self, alive: Collection[int], now: float | None = None) -> bool:
        """Whether workers that died are to be started again now.

        Args:
            alive: process ids of the workers that run.
            now: the time in seconds, of any clock that only goes forward; None asks `time.monotonic`.

        Raises:
            KdcError: no worker runs that was ever ready, and the last ones could not start.
        """
        now = time.monotonic() if now is None else now
        for worker in sorted(self._alive - set(alive)):
            self._deaths.append(now)
            self._failed = 0 if runtime.was_ready(self._folder, worker) else self._failed + 1
        if set(alive) - self._alive:
            self._asked = None
        elif self._asked is not None and now - self._asked >= _SEEN_S:  # it died between two looks
            self._deaths.append(now)
            self._failed, self._asked = self._failed + 1, None
        self._alive = set(alive)
        serves = any(runtime.was_ready(self._folder, worker) for worker in alive)
        if self._failed >= _FAILED_STARTS * self._workers and not serves:
            raise KdcError(
                "the service stopped: its workers cannot start",
                given=f"{self._failed} in a row died before they were ready",
                remedy="each has printed its reason above; is the artifact still there, and is there memory enough?",
            )
        self._deaths = [death for death in self._deaths if now - death < _RECENT_S]
        if not self._deaths or len(alive) >= self._workers or self._asked is not None:
            return False
        turn = min(-(-len(self._deaths) // self._workers), len(_WAITS_S) - 1)
        if now - self._deaths[-1] < _WAITS_S[turn]:
            return False
        self._asked = now
        return True
