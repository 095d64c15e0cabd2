"""Starts and stops a server."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.serving.servers import Server
from kdc.common.errors import KdcError

_START_S, _STOP_S = 120.0, 15.0
_LOOK_S = 0.01


@dataclass(frozen=True)
class Running:
    """A ready server.

    Attributes:
        seconds_to_ready: until the first 200.
        worker: the answering process.
    """

    server: Server
    port: int
    seconds_to_ready: float
    worker: psutil.Process
    group: Path | None = None  # cgroup

    def memory_kills(self) -> int:
        assert self.group is not None
        events = next(file for name in ("memory.events", "memory.oom_control") if (file := self.group / name).exists())
        counts = dict(line.split() for line in events.read_text("ascii").splitlines())
        return int(counts["oom_kill"])

    def resident_mb(self) -> float:
        return float(self.worker.memory_info().rss) / 1e6

    def ask(self, path: str, body: Any) -> Any:
        """Raises `KdcError` unless the reply is 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            reply = connection.getresponse()
            content = reply.read()
        if reply.status != 200:
            raise KdcError(f"{self.server.name} answers {reply.status}", given=content[:300].decode(errors="replace"))
        return json.loads(content)


@contextlib.contextmanager
def running(server: Server, log: Path, memory_mb: int | None = None) -> Iterator[Running]:
    """A server that runs until the block ends.

    Args:
        memory_mb: MiB of all its processes (needs root); None: no limit.

    Raises:
        KdcError: the server does not become ready, or memory cannot be limited.
    """
    port = free_port()
    with log.open("ab") as output, _cgroup(memory_mb) as group:
        command = server.command(port)
        if group is not None:
            command = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), *command]
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output, env=server.variables())
        tree = psutil.Process(process.pid)
        children: list[psutil.Process] = []
        try:
            connection = _when_ready(server, port, process, log)
            seconds = time.perf_counter() - began
            children = tree.children(recursive=True)
            with contextlib.closing(connection):
                worker = _peer_of(connection, port, [tree, *children])
            yield Running(server, port, seconds, worker, group)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                children = tree.children(recursive=True)
            _stop(process, children)


@contextlib.contextmanager
def _cgroup(memory_mb: int | None) -> Iterator[Path | None]:
    if memory_mb is None:
        yield None
        return
    root = Path("/sys/fs/cgroup")
    version_1 = (root / "memory").is_dir()
    group = (root / "memory" if version_1 else root) / f"kdc-benchmark-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(memory_mb << 20))
    except OSError as error:
        raise KdcError(
            f"memory cannot be limited here: {error.strerror}", given=f"{memory_mb} MiB", remedy="run it as root"
        ) from error
    try:
        yield group
    finally:
        group.rmdir()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _when_ready(server: Server, port: int, process: subprocess.Popen[bytes], log: Path) -> http.client.HTTPConnection:
    deadline = time.perf_counter() + _START_S
    while time.perf_counter() < deadline:
        if process.poll() is not None:
            raise KdcError(f"{server.name} ended before it was ready", given=f"exit code {process.returncode}; {log}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", server.health)
            reply = connection.getresponse()
            reply.read()
            if reply.status == 200:
                return connection
        except (OSError, http.client.HTTPException):
            pass  # not yet
        connection.close()
        time.sleep(_LOOK_S)
    raise KdcError(f"{server.name} was not ready within {_START_S:g} s", given=log)


def _peer_of(connection: http.client.HTTPConnection, port: int, processes: list[psutil.Process]) -> psutil.Process:
    """The process at the other end. A supervisor may listen too."""
    own = connection.sock.getsockname()[1]
    for process in processes:
        for other in process.net_connections(kind="tcp"):
            if other.raddr and (other.laddr.port, other.raddr.port) == (port, own):
                return process
    raise KdcError("no process of the server holds the connection that it answered", given=f"port {port}")


def _stop(process: subprocess.Popen[bytes], children: list[psutil.Process]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(children, timeout=_STOP_S)
    for child in alive:
        child.kill()
