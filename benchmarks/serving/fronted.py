"""`kdc serve` in front of the stub, with the tests' artifacts and requests."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.serving.process import free_port
from benchmarks.serving.servers import ROOT, Server
from benchmarks.serving.stub import started_process

sys.path.insert(0, str(ROOT / "tests"))


def fronting(artifacts: str, upstream: int | None, scratch: Path, *options: str, **environment: str) -> Server:
    """`kdc serve` of `NAME=PATH,...`; `upstream` is a local port."""
    more = [] if upstream is None else ["--upstream", f"http://127.0.0.1:{upstream}/v1", *options]
    # The stub answers by a hash, so audits differ.
    audits = {"KDC_AUDIT_BUDGET": "0.99", "KDC_STATE_DIR": str(scratch / "state")}
    return Server(
        "kdc",
        lambda port: [
            *(sys.executable, "-m", "kdc", "serve", *artifacts.split(","), "--port", str(port), "--device", "cpu"),
            *more,
        ],
        "/health",
        None,
        {"KDC_DRAIN_DELAY_S": "0"} | audits | environment,
    )


class StubProcess:
    def __init__(self, *arguments: str) -> None:
        self.port = free_port()
        self._arguments, self._starts = arguments, 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        """Each start draws other faults."""
        self._starts += 1
        self._process = started_process(self.port, *self._arguments, "--seed", str(self._starts), *more)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def stub_process(*arguments: str) -> Iterator[StubProcess]:
    stub = StubProcess(*arguments)
    stub.start()
    try:
        yield stub
    finally:
        stub.kill()
