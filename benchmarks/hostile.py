"""Attacks on `kdc serve` by hostile clients: effect on memory, probes and other clients.

Command: `python benchmarks/hostile.py ARTIFACT [--seconds 30] [--only trailers,idle]`, as root. The service has 1 GiB
of memory (`--memory-mb 0`: no limit, no root) and asks for a token, which most attacks lack.

Ends with 1 if a bound of docs/benchmarks/attacks.md is broken.
"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serving.attacks import ATTACKS as HTTP_ATTACKS
from benchmarks.serving.attacks import GONE, KEY, OVERLOADS, ROW, WITH_THE_TOKEN, Asking, Attack, Target, connected
from benchmarks.serving.grpc_attacks import GRPC_ATTACKS
from benchmarks.serving.mark import Mark, marks_table
from benchmarks.serving.process import Running, free_port, running
from benchmarks.serving.servers import ROOT, Subject, all_servers
from kdc.artifact.folder import load_manifest

ATTACKS = GRPC_ATTACKS | HTTP_ATTACKS
_MEMORY_MB, _PROBE_MS, _TIMES_ALONE, _PROGRESS = 64.0, 500.0, 3.0, 0.5
_GROWING, _MORE_MS = ("nested-json", "grpc-contents"), 100.0
_FAIR, _LARGE = ("large-requests", "long-words-of-100"), "large-requests"
_MANY_LABELS, _LONG_PAIRS, _WAIT_MS = ("many-labels", "grpc-unread"), "long-pairs", 1000.0
_LONG_ROWS = (_LONG_PAIRS, "endless-words", "without-spaces")
_LABELS, _LIMIT_MB = 5000, 1024
_OTHERS = dict.fromkeys(("long-words-of-100", *_LONG_ROWS), "a row of words such as others send " * 86)
_EVERY_S, _PROBE_EVERY_S = 0.05, 0.1
_CONNECTIONS = 4000  # `_hold` opens 5,000


@dataclass
class Beside:
    answered: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # other clients' requests
    probes: list[float] = field(default_factory=list)  # seconds; a failed probe counts as ten
    apart: list[float] = field(default_factory=list)  # probes, admin port
    memory_mb: list[float] = field(default_factory=list)
    alone: float | None = None  # others' p99 without the attack, ms
    killed: int = 0
    progress: float | None = None  # attack's requests, relative to no other clients


async def beside(attack: Attack, target: Target, up: Running) -> Beside:
    seen = Beside(memory_mb=[up.resident_mb()])
    watchers = [asyncio.create_task(watch(target, up, seen)) for watch in (_ask, _probe, _probe_apart, _weigh)]
    await attack(target)
    await asyncio.gather(*watchers)
    return seen


def in_a_process(name: str) -> Attack:
    """The process has a lower priority than all else."""

    async def attack(target: Target) -> None:
        with ProcessPoolExecutor(1, initializer=os.nice, initargs=(10,)) as process:
            loop = asyncio.get_running_loop()
            target.done.extend(await loop.run_in_executor(process, _attack, name, target))

    return attack


def _attack(name: str, target: Target) -> list[float]:
    asyncio.run(ATTACKS[name](target))  # type: ignore[arg-type]
    return target.done


async def _ask(target: Target, up: Running, seen: Beside) -> None:
    client = Asking(target.port, "/predict")
    body = json.dumps({"inputs": [target.row(target.others)]}).encode()
    expected = (await client.post(body)).body
    is_last = False
    while not is_last:
        is_last = not target.goes_on()
        try:
            reply = await asyncio.wait_for(client.post(body), 10)
        except (*GONE, TimeoutError) as error:
            seen.failed.append(type(error).__name__)
            continue
        if reply.status != 200 or not _is_same(reply.body, expected):
            seen.failed.append(str(reply.status))
        else:
            seen.answered += 1
            seen.seconds.append(reply.seconds)
        await asyncio.sleep(_EVERY_S)
    client.close()


def _is_same(reply: bytes, expected: bytes) -> bool:
    """Batches may change a score's last digits."""
    if reply == expected:
        return True
    (one, other) = (json.loads(body)[0][0] for body in (reply, expected))
    return one["label"] == other["label"] and abs(one["score"] - other["score"]) < 1e-4


async def _probe(target: Target, up: Running, seen: Beside) -> None:
    await _probe_at(target, target.port, seen.probes)


async def _probe_apart(target: Target, up: Running, seen: Beside) -> None:
    if target.admin_port is not None:
        await _probe_at(target, target.admin_port, seen.apart)


async def _probe_at(target: Target, port: int, seconds: list[float]) -> None:
    while target.goes_on():
        began = time.perf_counter()
        try:
            async with asyncio.timeout(10), connected(target, port) as (reader, writer):
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                is_ready = b" 200 " in await reader.readline()
        except (*GONE, TimeoutError):
            is_ready = False
        seconds.append(time.perf_counter() - began if is_ready else 10.0)
        await asyncio.sleep(_PROBE_EVERY_S)


async def _weigh(target: Target, up: Running, seen: Beside) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # killed
        while target.goes_on():
            seen.memory_mb.append(up.resident_mb())
            await asyncio.sleep(0.02)


def run(artifact: Path, names: Sequence[str], seconds: float, scratch: Path, memory_mb: int) -> dict[str, Beside]:
    os.environ["HOSTILE_KEY"] = KEY
    apart, grpc_port = free_port(), free_port()
    ours = {"KDC_API_KEY_ENV": "HOSTILE_KEY", "KDC_ADMIN_PORT": str(apart), "KDC_MAX_CONNECTIONS": str(_CONNECTIONS)}
    ours["KDC_GRPC_ADDRESS"] = f"127.0.0.1:{grpc_port}"
    found = {}
    for name in names:
        served = _made_up(name, scratch / name) if name in (*_MANY_LABELS, _LONG_PAIRS) else artifact
        manifest = load_manifest(served)
        server = all_servers(Subject(served, manifest, None, None, scratch))[0]["kdc"]
        server = replace(server, environment=server.environment | ours)
        with running(server, scratch / "log", memory_mb or None) as up:
            for length in range(1, 40, 4):  # the first request of each length takes memory
                asyncio.run(_warm(Target(up.port, manifest.task.is_pair, 0.0), length))
            target = Target(up.port, manifest.task.is_pair, 0.0, apart, grpc_port, _CONNECTIONS)
            target = replace(target, others=_OTHERS.get(name, ROW))

            def now(target: Target = target) -> Target:
                return replace(target, until=time.monotonic() + seconds, done=[])

            alone = asyncio.run(beside(ATTACKS["alone"], now(), up)) if name in _FAIR else None
            by_itself = now()
            if name == _LARGE:
                asyncio.run(_by_itself(in_a_process(name), by_itself))
            attacked = now()
            found[name] = asyncio.run(beside(in_a_process(name), attacked, up))
            found[name].killed = up.memory_kills() if memory_mb else 0
            found[name].alone = None if alone is None else _p99(alone.seconds)
            if name == _LARGE:
                found[name].progress = len(attacked.done) / max(1, len(by_itself.done))
    return found


def _made_up(name: str, folder: Path) -> Path:
    sys.path.insert(0, str(ROOT / "tests"))
    from bag_models import INFO, PAIR, make_word_pieces, many_labels, write_artifact

    if name in _MANY_LABELS:
        return write_artifact(folder, many_labels(_LABELS), outputs=_LABELS)
    tokenizer = make_word_pieces(folder.with_suffix(".json"))
    return write_artifact(folder, PAIR, INFO.model_copy(update={"max_length": 128}), tokenizer=tokenizer)


async def _by_itself(attack: Attack, target: Target) -> None:
    await attack(target)


async def _warm(target: Target, length: int) -> None:
    client = Asking(target.port, "/predict")
    await client.post(json.dumps({"inputs": [target.row("word " * length)] * 8}).encode())
    client.close()


def marks_of(found: dict[str, Beside]) -> list[Mark]:
    marks = []
    for name, seen in found.items():
        marks.append(Mark(f"{name}: processes killed for want of memory", False, 0, seen.killed))
        if name not in WITH_THE_TOKEN:
            marks.append(Mark(f"{name}: memory, MB more", False, _MEMORY_MB, _grown(seen)))
        if name not in OVERLOADS:
            marks.append(Mark(f"{name}: requests of others that failed", False, 0, len(seen.failed)))
            marks.append(Mark(f"{name}: p99 of the probes, ms", False, _PROBE_MS, _p99(seen.probes)))
        marks.append(Mark(f"{name}: p99 of the probes on their own port, ms", False, _PROBE_MS, _p99(seen.apart)))
        if seen.alone is not None:
            ratio = _p99(seen.seconds) / seen.alone
            marks.append(Mark(f"{name}: p99 of others, times that alone", False, _TIMES_ALONE, ratio))
        if name in _LONG_ROWS:
            marks.append(Mark(f"{name}: p99 of others, ms", False, _WAIT_MS, _p99(seen.seconds)))
        if seen.progress is not None:
            marks.append(Mark(f"{name}: its own speed, to that where nobody else asks", True, _PROGRESS, seen.progress))
    for name in set(_GROWING) & set(found) if "alone" in found else ():
        more = _p99(found[name].seconds) - _p99(found["alone"].seconds)
        marks.append(Mark(f"{name}: p99 of others, ms more than alone", False, _MORE_MS, more))
    return marks


def _grown(seen: Beside) -> float:
    return max(seen.memory_mb) - seen.memory_mb[0]


def _p99(seconds: Sequence[float]) -> float:
    return 1e3 * float(np.percentile(seconds or [10.0], 99))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--seconds", type=float, default=30, help="of each attack")
    parser.add_argument("--memory-mb", type=int, default=_LIMIT_MB, help="of the service; 0: no limit")
    parser.add_argument("--only", help="names of attacks, separated by commas")
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # for 5,000 connections
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    names = list(ATTACKS) if options.only is None else options.only.split(",")
    if unknown := sorted(set(names) - set(ATTACKS)):
        parser.error(f"no such attacks: {', '.join(unknown)}; there are {', '.join(ATTACKS)}")
    with tempfile.TemporaryDirectory() as scratch:
        found = run(options.artifact, names, options.seconds, Path(scratch), options.memory_mb)
    print(
        "| attack | others answered | failed | p50 ms | p99 ms | probes p99 ms | on their own port | memory, MB more |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, seen in found.items():
        middle = 1e3 * float(np.median(seen.seconds or [10.0]))
        print(
            f"| {name} | {seen.answered} | {len(seen.failed)} | {middle:.1f} | {_p99(seen.seconds):.1f} | "
            f"{_p99(seen.probes):.1f} | {_p99(seen.apart):.1f} | {_grown(seen):.1f} |"
        )
    marks = marks_of(found)
    print("\n" + marks_table(marks))
    sys.exit(0 if all(mark.holds for mark in marks) else 1)


if __name__ == "__main__":
    main()
