"""Loads by wrk, which costs a tenth of a Python client's CPU."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.serving.servers import Dialect
from benchmarks.serving.texts import SETS
from kdc.common.errors import InputError, KdcError
from kdc.serving.engine.tokenizing import Text

_SCRIPT = Path(__file__).with_name("load.lua")
_TIMEOUT_S = 60


@dataclass(frozen=True)
class Load:
    """A closed loop. Loads of one `turn` share a started server."""

    texts: str
    connections: int
    rows: int
    turn: int

    @property
    def name(self) -> str:
        return f"{self.texts}-{self.connections}" + (f"x{self.rows}" if self.rows > 1 else "")


_TURNS = (((1,), 1), ((8,), 1), ((32, 128), 1), ((8,), 32))  # connections, rows of a request
LOADS = {
    load.name: load
    for turn, (many, rows) in enumerate(_TURNS)
    for load in (Load(texts, connections, rows, turn) for texts in SETS for connections in many)
}


@dataclass(frozen=True)
class Figures:
    requests_per_second: float
    rows_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    errors: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def check_wrk() -> None:
    if shutil.which("wrk") is None:
        raise InputError("the load generator is not installed", given="wrk", remedy="apt install wrk, or brew")


def write_bodies(file: Path, dialect: Dialect, rows: Sequence[Text], rows_a_request: int) -> None:
    count = len(rows) if rows_a_request == 1 else 128
    with file.open("w", encoding="utf-8") as out:
        for number in range(count):
            start = number * rows_a_request
            chosen = [rows[place % len(rows)] for place in range(start, start + rows_a_request)]
            out.write(json.dumps(dialect.body(chosen)) + "\n")


def drive(
    port: int, path: str, bodies: Path, *, connections: int, rows: int, seconds: float, core: int | None = None
) -> Figures:
    """Run wrk with one thread on a file of `write_bodies`; `seconds` are rounded, at least 1."""
    command = [
        *([] if core is None else ["taskset", "-c", str(core)]),
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}s",
        "--timeout",
        f"{_TIMEOUT_S}s",
        "-s",
        str(_SCRIPT),
        f"http://127.0.0.1:{port}",
        "--",
        path,
        str(bodies),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise KdcError("wrk failed", given=done.stderr.strip() or done.stdout.strip())
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    speed = (seen["requests"] - seen["refused"]) / seen["seconds"]
    return Figures(speed, speed * rows, seen["p50"], seen["p95"], seen["p99"], seen["refused"] + seen["broken"])
