import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from kdc.common.errors import KdcError
from kdc.serving.http import runtime

log = logging.getLogger("kdc.serve")
# BentoML's worker command, without the socket's descriptor.
_WORKER = (sys.executable, "-m", "_bentoml_impl.worker.service", "kdc.serving.service:Classifier")
_KILLED_S = 5.0  # a killed worker's driver may hang
_RECENT_S = 60.0  # seconds for which a death counts
_WAITS_S = (0.0, 0.0, 1.0, 2.0, 4.0, 8.0)  # by recent deaths per worker
_FAILED_STARTS = 5  # in a row, per worker


class Workers:
    """Processes that accept connections on one listening socket.

    Args:
        folder: where workers run and report: files in the current folder could shadow modules.
    """

    def __init__(self, listener: socket.socket, folder: Path, count: int, environment: Mapping[str, str]) -> None:
        metrics = folder / "metrics"
        metrics.mkdir()
        of_service = {runtime.DIRECTORY: str(folder), runtime.SUPERVISOR: str(os.getpid())}
        self._environment = {**os.environ, **environment, **of_service, "PROMETHEUS_MULTIPROC_DIR": str(metrics)}
        self._listener, self._folder, self._count = listener, folder, count
        self._processes: list[subprocess.Popen[bytes]] = []
        self._deaths: list[float] = []
        self._failed = 0  # since a worker was ready

    def start(self) -> None:
        while len(self._processes) < self._count:
            self._processes.append(
                subprocess.Popen(
                    [*_WORKER, "--fd", str(self._listener.fileno())],
                    cwd=self._folder,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[self._listener.fileno()],
                    start_new_session=True,  # Ctrl-C must not reach the worker
                )
            )

    def restart(self, now: float | None = None) -> None:
        """Replace dead workers, unless it is too early. `now` is by `time.monotonic`."""
        now = time.monotonic() if now is None else now
        for process in [process for process in self._processes if process.poll() is not None]:
            self._processes.remove(process)
            self._deaths.append(now)
            self._failed = 0 if runtime.was_ready(self._folder, process.pid) else self._failed + 1
        serves = any(runtime.was_ready(self._folder, process.pid) for process in self._processes)
        if self._failed >= _FAILED_STARTS * self._count and not serves:
            raise KdcError(
                "the service stopped: its workers cannot start",
                given=f"{self._failed} in a row died before they were ready",
                remedy="each has printed its reason above; is the artifact still there, and is there enough memory?",
            )
        self._deaths = [death for death in self._deaths if now - death < _RECENT_S]
        turn = min(-(-len(self._deaths) // self._count), len(_WAITS_S) - 1)
        if not self._deaths or now - self._deaths[-1] >= _WAITS_S[turn]:
            try:
                self.start()
            except OSError as error:  # no memory now
                self._deaths.append(now)
                log.warning("a worker cannot be started now: %s", error)

    def stop(self, bound_s: float) -> None:
        """Stop all workers, by force after `bound_s`: a forward pass may hang."""
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
