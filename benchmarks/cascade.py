"""A cascade against single models: throughput, and latency of its two kinds of rows.

    python benchmarks/cascade.py --data GLUE runs/cascade/artifact runs/teacher/artifact runs/student/artifact

The first artifact is the cascade; each may be PATH@VARIANT. Factors are the cascade's speed divided by another
artifact's, medians over rounds. The last table compares the cascade with its first model alone: "stay" are rows that
the first model answers, "go on" the others.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serving.client import Client
from benchmarks.serving.load import check_wrk, drive, write_bodies
from benchmarks.serving.process import running
from benchmarks.serving.servers import Server, Subject, all_servers
from benchmarks.serving.texts import SETS, read_rows
from kdc.artifact.folder import load_manifest
from kdc.common import machine
from kdc.common.errors import InputError, KdcError
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.tokenizing import Text

_BATCH, _CONNECTIONS, _FEW = 32, 32, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="+", help="artifacts, as PATH or PATH@VARIANT; the first is the cascade")
    parser.add_argument("--data", type=Path, help="GLUE's folder; without it rows are made up")
    parser.add_argument("--texts", choices=list(SETS), default="sst2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of each load in each round")
    options = parser.parse_args()
    try:
        check_wrk()
        sys.stdout.write(_measured(options))
    except KdcError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)


def _measured(options: argparse.Namespace) -> str:
    places = {subject: subject.partition("@") for subject in options.subjects}
    engines = {
        subject: Engine.load(path, variant=variant or None, device="cpu")
        for subject, (path, _, variant) in places.items()
    }
    cascade = next(iter(engines.values()))
    if cascade.second is None:
        raise InputError("the first artifact is no cascade", given=options.subjects[0])
    rows = read_rows(options.texts, options.data, is_pair=cascade.task.is_pair)
    encodings = cascade.encode(rows)
    goes_on = np.zeros(len(rows), dtype=bool)
    for start in range(0, len(rows), _BATCH):
        goes_on[start + cascade.unsure(cascade.run(encodings[start : start + _BATCH]))] = True
    batches: dict[str, list[float]] = {subject: [] for subject in engines}
    for engine in engines.values():  # warm-up
        _rows_a_second(engine, rows[:_BATCH])
    for _ in range(options.rounds):
        for subject, engine in engines.items():
            batches[subject].append(_rows_a_second(engine, rows))
    for engine in engines.values():
        engine.close()
    with tempfile.TemporaryDirectory() as scratch:
        servers = {subject: _server(path, variant, Path(scratch)) for subject, (path, _, variant) in places.items()}
        requests = _requests(servers, rows, options, Path(scratch))
        path, _, _ = places[options.subjects[0]]
        alone = _first_alone(Path(path), cascade)
        waits = {
            "the cascade": _waits(servers[options.subjects[0]], rows, goes_on, options, Path(scratch)),
            f"its first model alone ({alone})": _waits(
                _server(path, alone, Path(scratch)), rows, goes_on, options, Path(scratch)
            ),
        }
    return _tables(batches, requests, waits, float(goes_on.mean()))


def _rows_a_second(engine: Engine, rows: list[Text]) -> float:
    began = time.perf_counter()
    for start in range(0, len(rows), _BATCH):
        engine.predict(rows[start : start + _BATCH], batch_size=_BATCH)
    return len(rows) / (time.perf_counter() - began)


def _server(path: str, variant: str, scratch: Path) -> Server:
    artifact = Path(path).resolve()
    server = all_servers(Subject(artifact, load_manifest(artifact), None, None, scratch))[0]["kdc"]
    return replace(server, environment=server.environment | ({"KDC_VARIANT": variant} if variant else {}))


def _first_alone(path: Path, cascade: Engine) -> str:
    variants = load_manifest(path).variants
    file = next(each.file for name, each in variants.items() if name == cascade.variant)
    return next(str(name) for name, each in variants.items() if each.second is None and each.file == file)


def _requests(
    servers: dict[str, Server], rows: list[Text], options: argparse.Namespace, scratch: Path
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {subject: [] for subject in servers}
    for _ in range(options.rounds):
        for subject, server in servers.items():
            assert server.dialect is not None
            bodies = scratch / "bodies.txt"
            write_bodies(bodies, server.dialect, rows, 1)
            with running(server, scratch / "serve.log") as up:
                for seconds in (options.seconds / 4, options.seconds):  # warm-up first
                    figures = drive(
                        up.port, server.dialect.path, bodies, connections=_CONNECTIONS, rows=1, seconds=seconds
                    )
            found[subject].append(figures.requests_per_second)
    return found


def _waits(
    server: Server, rows: list[Text], goes_on: np.ndarray, options: argparse.Namespace, scratch: Path
) -> dict[str, tuple[float, float]]:
    """p50 and p99 in ms of requests that the first model answers, and of the others."""
    dialect = server.dialect
    assert dialect is not None
    bodies = [json.dumps(dialect.body([row])).encode() for row in rows]
    seen: dict[bool, list[float]] = {True: [], False: []}

    async def ask(client: Client, until: float, start: int) -> None:
        place = start
        while time.perf_counter() < until:
            reply = await client.post(bodies[place % len(bodies)])
            if reply.status != 200:
                raise KdcError("the service refused a request", given=reply.status)
            seen[bool(goes_on[place % len(bodies)])].append(1000 * reply.seconds)
            place += _FEW

    async def all_connections(port: int) -> None:
        client = Client(port, dialect.path)
        await asyncio.gather(*(ask(client, time.perf_counter() + options.seconds, number) for number in range(_FEW)))
        client.close()

    with running(server, scratch / "serve.log") as up:
        asyncio.run(all_connections(up.port))  # warm-up
        seen[True].clear()
        seen[False].clear()
        for _ in range(options.rounds):
            asyncio.run(all_connections(up.port))
    p50, p99 = 50, 99
    return {
        name: (float(np.percentile(each, p50)), float(np.percentile(each, p99))) if each else (0.0, 0.0)
        for name, each in (("stay", seen[False]), ("go on", seen[True]))
    }


def _tables(
    batches: dict[str, list[float]],
    requests: dict[str, list[float]],
    waits: dict[str, dict[str, tuple[float, float]]],
    share: float,
) -> str:
    first = next(iter(batches))
    lines = [f"CPU: {machine.cpu().model}; {100 * share:.0f} % of the rows go on.", ""]
    lines += [
        "| | rows/s in batches of 32 | factor | requests/s at 32 connections | factor |",
        "|---|---:|---:|---:|---:|",
    ]
    for subject in batches:
        cells = []
        for found in (batches, requests):
            factors = np.array(found[first]) / np.array(found[subject])
            cells += [
                f"{np.median(found[subject]):.0f}",
                "" if subject == first else f"{np.median(factors):.2f} ({factors.min():.2f} to {factors.max():.2f})",
            ]
        lines.append(f"| {subject} | " + " | ".join(cells) + " |")
    lines += ["", f"| at {_FEW} connections | stay: p50, p99 ms | go on: p50, p99 ms |", "|---|---:|---:|"]
    for name, by_kind in waits.items():
        lines.append(f"| {name} | " + " | ".join(f"{p50:.1f}, {p99:.1f}" for p50, p99 in by_kind.values()) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
