"""CPU time of one request by part, and of the service under load.

Command: `python benchmarks/split.py --run RUN [--data GLUE_FOLDER]`. Needs wrk. Prints CPU microseconds a request of
one SST-2 text (all threads), and time a token by batch size.

- parse, tokenise, serialise: the service's own functions.
- queue: the batcher with a model that costs nothing.
- session: forward passes in lanes, as large as under load.
- HTTP: `/health` under bare uvicorn.
- BentoML: `/health` under `kdc serve`, less HTTP.
- all: a worker's CPU time at 32 connections.
- the rest: all, less the parts: waits between threads, the allocator, spinning threads.
"""

import argparse
import asyncio
import http.client
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serving.load import check_wrk, drive, write_bodies
from benchmarks.serving.process import Running, running
from benchmarks.serving.servers import Server, Subject, all_servers
from benchmarks.serving.texts import read_rows
from kdc.artifact.folder import load_manifest
from kdc.common.errors import KdcError
from kdc.serving.engine.engine import Engine, Text
from kdc.serving.engine.long_texts import Encoded, Tokens, spread
from kdc.serving.http import replies
from kdc.serving.http.api import request_body, tei
from kdc.serving.http.batcher import Batcher
from kdc.serving.http.registry import MAX_LANES
from kdc.serving.http.settings import ServeSettings

_CONNECTIONS = 32
_ROW_TOKENS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/pydocs"), help="directory of a kdc compress")
    parser.add_argument("--data", type=Path, help="GLUE's folder")
    parser.add_argument("--seconds", type=float, default=5, help="of each load")
    options = parser.parse_args()
    try:
        check_wrk()
        with tempfile.TemporaryDirectory() as scratch:
            sys.stdout.write(_table(_measure(options, Path(scratch))))
        sys.stdout.write(_growth(Engine.load(options.run / "artifact", device="cpu", lanes=MAX_LANES)))
    except KdcError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)


def _measure(options: argparse.Namespace, scratch: Path) -> dict[str, tuple[float, float]]:
    artifact = (options.run / "artifact").resolve()
    manifest = load_manifest(artifact)
    rows = read_rows("sst2", options.data, is_pair=manifest.task.is_pair)
    servers, _ = all_servers(Subject(artifact, manifest, None, None, scratch))
    kdc = _under_load(servers["kdc"], rows, options.seconds, scratch)
    uvicorn = _under_load(servers["uvicorn"], rows, options.seconds, scratch)
    engine = Engine.load(artifact, device="cpu", lanes=MAX_LANES)
    engine.warm_up()
    alike = {
        "parse": _parse(servers["kdc"], rows),
        "tokenise": _cpu_us(lambda: [engine.encode([row]) for row in rows], len(rows)),
        "queue": asyncio.run(_queue(engine, rows)),
        "serialise": _serialise(engine, rows),
    }
    parts = {name: (value, value) for name, value in alike.items()}
    parts["session"] = (_session(engine, rows, kdc.batch), _session(engine, rows, uvicorn.batch))
    parts["HTTP"] = (uvicorn.health, uvicorn.health)
    parts["BentoML"] = (kdc.health - uvicorn.health, 0.0)
    whole = (kdc.request, uvicorn.request)
    rest = (whole[0] - sum(value for value, _ in parts.values()), whole[1] - sum(value for _, value in parts.values()))
    return {**parts, "the rest": rest, "all": whole, "rows a batch": (kdc.batch, uvicorn.batch)}


@dataclass(frozen=True)
class Loaded:
    """CPU microseconds of a request and of `/health`, and mean rows a pass."""

    request: float
    health: float
    batch: float


def _under_load(server: Server, rows: list[Text], seconds: float, scratch: Path) -> Loaded:
    dialect = server.dialect
    assert dialect is not None
    bodies = scratch / f"{server.name}.txt"
    write_bodies(bodies, dialect, rows, 1)
    with running(server, scratch / f"{server.name}.log") as up:

        def ask(duration: float) -> float:
            figures = drive(
                up.port,
                dialect.path,
                bodies,
                connections=_CONNECTIONS,
                rows=1,
                seconds=duration,
            )
            return figures.requests_per_second * max(1, round(duration))

        ask(seconds / 4)  # warm-up
        passes, answered = _passes(up)
        request = _worker_us(up, lambda: ask(seconds))
        later, last = _passes(up)
        health = _worker_us(up, lambda: _health(up.port, seconds))
    return Loaded(request, health, (last - answered) / (later - passes))


def _worker_us(up: Running, work: Callable[[], float]) -> float:
    def spent() -> float:
        times = up.worker.cpu_times()
        return float(times.user + times.system)

    before = spent()
    count = work()
    return 1e6 * (spent() - before) / count


def _health(port: int, seconds: float) -> float:
    command = ["wrk", "-t1", f"-c{_CONNECTIONS}", f"-d{max(1, round(seconds))}s", f"http://127.0.0.1:{port}/health"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"(\d+) requests in", done.stdout)
    if found is None:
        raise KdcError("wrk printed something else", given=done.stdout[-300:])
    return float(found.group(1))


def _passes(up: Running) -> tuple[float, float]:
    connection = http.client.HTTPConnection("127.0.0.1", up.port, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = [re.search(rf"^kdc_batch_rows_{end}{{.*}} (\S+)$", text, re.MULTILINE) for end in ("count", "sum")]
    passes, rows = (float(match.group(1)) for match in found if match is not None)
    return passes, rows


def _cpu_us(work: Callable[[], object], count: int) -> float:
    rounds = []
    for _ in range(5):
        began = time.process_time()
        work()
        rounds.append(time.process_time() - began)
    return 1e6 * min(rounds) / count


def _parse(server: Server, rows: list[Text]) -> float:
    assert server.dialect is not None
    settings = ServeSettings()
    bodies = [replies.JsonResponse(server.dialect.body([row])).body for row in rows]

    def parse(body: bytes) -> object:
        question = request_body.checked(tei.PredictRequest, request_body.decoded(body))
        return request_body.within_limits(question.rows, settings)

    return _cpu_us(lambda: [parse(bytes(body)) for body in bodies], len(rows))


def _serialise(engine: Engine, rows: list[Text]) -> float:
    logits = [engine.run(engine.encode([row])) for row in rows]

    def answer(row: np.ndarray) -> object:
        return replies.JsonResponse([tei.labelled(engine, scores) for scores in engine.activated(row)])

    return _cpu_us(lambda: [answer(row) for row in logits], len(rows))


async def _queue(engine: Engine, rows: list[Text]) -> float:
    encodings, _ = spread(engine.encode(rows))

    def free(batch: object) -> np.ndarray:
        return np.zeros((len(batch), 2), np.float32)  # type: ignore[arg-type]

    batcher = Batcher(free, beside=free, lanes=engine.lanes)

    async def one_of_many(start: int) -> None:
        for encoding in encodings[start::_CONNECTIONS]:
            await batcher.submit([encoding])

    began = time.process_time()
    await asyncio.gather(*(one_of_many(start) for start in range(_CONNECTIONS)))
    spent = time.process_time() - began
    await batcher.close()
    return 1e6 * spent / len(encodings)


def _session(engine: Engine, rows: list[Text], size: float) -> float:
    encodings = sorted(engine.encode(rows), key=len)
    whole = max(1, round(size))
    batches = [encodings[start : start + whole] for start in range(0, len(encodings), whole)]
    return _cpu_us(lambda: _side_by_side(engine, batches), len(encodings))


def _side_by_side(engine: Engine, batches: Sequence[Sequence[Encoded]]) -> None:
    def lane(number: int) -> None:
        for batch in batches[number :: engine.lanes]:
            engine.run_beside(batch)

    threads = [threading.Thread(target=lane, args=(number,)) for number in range(engine.lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _growth(engine: Engine) -> str:
    (short,) = engine.encode([("a", "a") if engine.task.is_pair else "a"])
    row = Tokens([short.ids[1]] * _ROW_TOKENS, [0] * _ROW_TOKENS)
    sizes = [2**power for power in range(9)]
    alone: dict[int, list[float]] = {size: [] for size in sizes}
    beside: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(30):
        for size in sizes:
            tokens = size * _ROW_TOKENS
            began = time.perf_counter()
            engine.run([row] * size)
            alone[size].append(1e6 * (time.perf_counter() - began) / tokens)
            count = engine.lanes * max(1, 512 // tokens)  # enough to hide the threads' start
            began = time.perf_counter()
            _side_by_side(engine, [[row] * size] * count)
            beside[size].append(1e6 * (time.perf_counter() - began) / (count * tokens))
    lines = ["", f"| rows of 32 tokens | tokens | us a token, alone | us a token, {engine.lanes} lanes |"]
    lines += ["|---:|---:|---:|---:|"]
    lines += [
        f"| {size} | {size * _ROW_TOKENS} | {median(alone[size]):.1f} | {median(beside[size]):.1f} |" for size in sizes
    ]
    return "\n".join(lines) + "\n"


def _table(parts: dict[str, tuple[float, float]]) -> str:
    lines = ["| CPU microseconds a request | kdc serve | bare uvicorn |", "|---|---:|---:|"]
    for name, (kdc, uvicorn) in parts.items():
        digits = 1 if name == "rows a batch" else 0
        lines.append(f"| {name} | {kdc:.{digits}f} | {uvicorn:.{digits}f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
