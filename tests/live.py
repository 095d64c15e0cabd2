"""Two ways to serve in tests: the app in a thread of the test process, and `kdc serve` in a process of its own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
import uvicorn

from kdc.serving.http.api.app import make_app
from kdc.serving.http.protocol import BoundedProtocol
from kdc.serving.http.settings import ServeSettings

ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def running(artifact: Path | str, **settings: Any) -> Iterator[str]:
    """Run the app in a thread and give its address; settings as in `ServeSettings`."""
    chosen = ServeSettings(artifact=str(artifact), device="cpu", threads=1, **settings)
    app = make_app(chosen)
    BoundedProtocol.settings, BoundedProtocol.metrics = chosen, app.state.metrics
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on", http=BoundedProtocol))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < deadline, "the server is not ready after 30 s"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive(), "the server did not stop within 15 s"


def connect(url: str) -> socket.socket:
    """A connection to the service at an address."""
    place = urlsplit(url)
    return socket.create_connection((place.hostname, place.port), timeout=10)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Process:
    """A process of `kdc serve`.

    Attributes:
        url: where it listens.
        log: the file with all that it printed.
        popen: the process.
    """

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / f"serve-{port}.log"
        with self.log.open("wb") as stream:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "kdc", "serve", "--port", str(port), "--device", "cpu", *arguments],
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            )

    def wait_ready(self, seconds: float = 60) -> None:
        """Wait until it takes requests."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.popen.poll() is None, self.printed()
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"{self.url}/health", timeout=2).status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"not ready after {seconds} s:\n{self.printed()}")

    def stop(self, seconds: float = 30) -> int:
        """Send SIGTERM and wait for its end; returns the exit code."""
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(seconds)

    def printed(self) -> str:
        """All that it printed so far."""
        return self.log.read_text(encoding="utf-8")


def resident_bytes(process: Process) -> int:
    """Resident memory of its supervisor's children, the workers among them."""
    return sum(child.memory_info().rss for child in psutil.Process(process.popen.pid).children())


@contextlib.contextmanager
def served(folder: Path, *arguments: str, **environment: str) -> Iterator[Process]:
    """A process that is ready; it is stopped afterwards."""
    process = Process(folder, *arguments, **environment)
    try:
        process.wait_ready()
        yield process
    finally:
        if process.popen.poll() is None:
            try:
                process.stop()
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()
