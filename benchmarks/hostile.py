"""What a hostile client can do to `kdc serve`: attack by attack, what became of the memory, the probes and the others.

Command: `python benchmarks/hostile.py ARTIFACT [--seconds 30] [--only trailers,idle]`. The service asks for a token,
and all attacks but the last two have none. Beside each of them a client with the token asks for one row twenty times a
second, and a probe asks `/readyz` on a new connection ten times a second. Prints a table; leaves with 1 where a bound
is passed: memory grows by less than 64 MB, every request of the others is answered as before, the probes' 99th
percentile is under half a second. Of the last two attacks the memory is told, not judged: their bodies are bounded by
settings.

`large-requests` is fairness: the others' 99th percentile beside a client with 1,024 rows a request is at most three
times what it is alone.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serving.client import Client
from benchmarks.serving.mark import Mark, marks_table
from benchmarks.serving.process import Running, running
from benchmarks.serving.servers import Subject, all_servers
from kdc.artifact.folder import load_manifest

KEY = "hostile-benchmark"
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
AUTHORIZED = b"Authorization: Bearer " + KEY.encode() + b"\r\n"
_MEMORY_MB, _PROBE_MS, _TIMES_ALONE = 64.0, 500.0, 3.0
_EVERY_S, _PROBE_EVERY_S = 0.05, 0.1
_GONE = (OSError, EOFError, ValueError)  # of a connection that the service has ended

Attack = Callable[["Target"], Awaitable[None]]


@dataclass(frozen=True)
class Target:
    """What is attacked, and until when."""

    port: int
    is_pair: bool
    until: float

    def goes_on(self) -> bool:
        """Whether the attack has time left."""
        return time.monotonic() < self.until

    def row(self, text: str) -> object:
        """A row with this text."""
        return [text, text] if self.is_pair else [text]


@dataclass
class Beside:
    """What was seen beside an attack."""

    answered: int = 0
    failed: list[str] = field(default_factory=list)  # what the others got in place of their answer
    seconds: list[float] = field(default_factory=list)  # of the others' requests
    probes: list[float] = field(default_factory=list)  # seconds of the probes; a failed one counts as ten
    memory_mb: list[float] = field(default_factory=list)


@contextlib.asynccontextmanager
async def connected(target: Target) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """One connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    try:
        yield reader, writer
    finally:
        writer.close()


def again_and_again(connections: int) -> Callable[[Attack], Attack]:
    """An attack by so many connections at once, each of which begins anew when it was ended."""

    def repeat(attack: Attack) -> Attack:
        async def one(target: Target) -> None:
            while target.goes_on():
                with contextlib.suppress(*_GONE):
                    await attack(target)
                await asyncio.sleep(0)

        async def all_of_them(target: Target) -> None:
            await asyncio.gather(*(one(target) for _ in range(connections)))

        return all_of_them

    return repeat


async def _flood(target: Target, writer: asyncio.StreamWriter, data: bytes) -> None:
    while target.goes_on():
        writer.write(data)
        await asyncio.wait_for(writer.drain(), 5)


@again_and_again(4)
async def trailers(target: Target) -> None:
    async with connected(target) as (_, writer):
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n")
        await _flood(target, writer, b"a: b\r\n" * 1000)


@again_and_again(40)
async def pipelining(target: Target) -> None:
    async with connected(target) as (_, writer):
        await _flood(target, writer, b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n" * 500)


@again_and_again(4)
async def pipelining_that_reads(target: Target) -> None:
    async with connected(target) as (reader, writer):
        reading = asyncio.create_task(_read(reader))
        try:
            await _flood(target, writer, b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n" * 500)
        finally:
            reading.cancel()


async def _read(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass


@again_and_again(40)
async def unread_answers(target: Target) -> None:
    async with connected(target) as (_, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 8)
        while target.goes_on() and not writer.is_closing():
            await asyncio.sleep(0.2)


@again_and_again(100)
async def after_an_answer(target: Target) -> None:
    async with connected(target) as (reader, writer):
        writer.write(HEAD + b"Content-Length: 5\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"hello\r\n")
        await asyncio.wait_for(reader.read(), max(0.1, target.until - time.monotonic()))


@again_and_again(200)
async def unfinished_heads(target: Target) -> None:
    async with connected(target) as (reader, writer):
        writer.write(HEAD + b"a: b\r\n" * 98)
        await asyncio.wait_for(reader.read(), max(0.1, target.until - time.monotonic()))


@again_and_again(20)
async def large_heads(target: Target) -> None:
    async with connected(target) as (reader, writer):
        writer.write(HEAD + b"a: " + b"x" * 70_000 + b"\r\n\r\n")
        await reader.read()


@again_and_again(200)
async def slowloris(target: Target) -> None:
    async with connected(target) as (_, writer):
        for byte in itertools.cycle(b"GET / HTTP/1.1\r\nx: " + b"y" * 100):
            if not target.goes_on():
                return
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.5)


@again_and_again(900)
async def idle(target: Target) -> None:
    async with connected(target) as (reader, _):
        await asyncio.wait_for(reader.read(), max(0.1, target.until - time.monotonic()))


@again_and_again(20)
async def churn(target: Target) -> None:
    async with connected(target) as (_, writer):
        writer.write(HEAD)


@again_and_again(100)
async def half_bodies(target: Target) -> None:
    async with connected(target) as (reader, writer):
        writer.write(HEAD + b"Content-Length: 1000000\r\n\r\n" + b"x" * 60_000)
        await reader.read(1)
        await asyncio.sleep(1)


FRAMINGS = (
    b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: xchunked\r\n\r\nhello",
    b"Content-Length: -1\r\n\r\n",
    b"Content-Length: +5\r\n\r\nhello",
    b"Content-Length: 99999999999999999999\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n5;" + b"x" * 5000 + b"\r\nhello\r\n0\r\n\r\n",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + b"\x81\x05hello" * 100,
    b" folded: x\r\n\r\n",
    b"no-colon\r\n\r\n",
    b"a\x00b: c\r\n\r\n",
    b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
)


@again_and_again(8)
async def odd_framings(target: Target) -> None:
    for framing in FRAMINGS:
        with contextlib.suppress(*_GONE):
            async with connected(target) as (reader, writer):
                writer.write(HEAD + framing)
                await asyncio.wait_for(reader.read(4096), 1)


async def long_texts(target: Target) -> None:
    """Four at a time, each as large as a body may be, of texts as long as they may be. With the token."""
    body = json.dumps({"inputs": [target.row("all of it is text " * 5500)] * (9 if target.is_pair else 18)}).encode()
    await _post_on(target, body, connections=4)


async def large_requests(target: Target) -> None:
    """One client whose requests have as many rows as they may. With the token."""
    body = json.dumps({"inputs": [target.row("a row of words such as others send")] * 1024}).encode()
    await _post_on(target, body, connections=1)


async def _post_on(target: Target, body: bytes, *, connections: int) -> None:
    async def one() -> None:
        client = Asking(target.port, "/predict")
        while target.goes_on():
            try:
                reply = await client.post(body)
            except _GONE:
                continue
            if reply.status == 429:
                await asyncio.sleep(0.2)
        client.close()

    await asyncio.gather(*(one() for _ in range(connections)))


class Asking(Client):
    """A client with the token."""

    def _head(self, length: int) -> bytes:
        return HEAD + AUTHORIZED + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % length


async def alone(target: Target) -> None:
    """No attack: what the others have by themselves."""
    await asyncio.sleep(target.until - time.monotonic())


ATTACKS: dict[str, Attack] = {
    "alone": alone,
    "trailers": trailers,
    "pipelining": pipelining,
    "pipelining-that-reads": pipelining_that_reads,
    "unread-answers": unread_answers,
    "after-an-answer": after_an_answer,
    "unfinished-heads": unfinished_heads,
    "large-heads": large_heads,
    "slowloris": slowloris,
    "idle": idle,
    "churn": churn,
    "half-bodies": half_bodies,
    "odd-framings": odd_framings,
    "long-texts": long_texts,
    "large-requests": large_requests,
}
WITH_THE_TOKEN = ("alone", "long-texts", "large-requests")


async def beside(attack: Attack, target: Target, up: Running) -> Beside:
    """Run an attack, and see how the service is for the others."""
    seen = Beside(memory_mb=[up.resident_mb()])
    watchers = [asyncio.create_task(watch(target, up, seen)) for watch in (_ask, _probe, _weigh)]
    await attack(target)
    await asyncio.gather(*watchers)
    return seen


async def _ask(target: Target, up: Running, seen: Beside) -> None:
    client = Asking(target.port, "/predict")
    body = json.dumps({"inputs": [target.row("a row of words such as others send")]}).encode()
    expected = (await client.post(body)).body
    while target.goes_on():
        try:
            reply = await asyncio.wait_for(client.post(body), 10)
        except (*_GONE, TimeoutError) as error:
            seen.failed.append(type(error).__name__)
            continue
        if reply.status != 200 or reply.body != expected:
            seen.failed.append(str(reply.status))
        else:
            seen.answered += 1
            seen.seconds.append(reply.seconds)
        await asyncio.sleep(_EVERY_S)
    client.close()


async def _probe(target: Target, up: Running, seen: Beside) -> None:
    while target.goes_on():
        began = time.perf_counter()
        try:
            async with asyncio.timeout(10), connected(target) as (reader, writer):
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                is_ready = b" 200 " in await reader.readline()
        except (*_GONE, TimeoutError):
            is_ready = False
        seen.probes.append(time.perf_counter() - began if is_ready else 10.0)
        await asyncio.sleep(_PROBE_EVERY_S)


async def _weigh(target: Target, up: Running, seen: Beside) -> None:
    while target.goes_on():
        seen.memory_mb.append(up.resident_mb())
        await asyncio.sleep(0.02)


def run(artifact: Path, names: Sequence[str], seconds: float, scratch: Path) -> dict[str, Beside]:
    """What was seen beside each attack, each against a service of its own."""
    os.environ["HOSTILE_KEY"] = KEY
    manifest = load_manifest(artifact)
    server = all_servers(Subject(artifact, manifest, None, None, scratch))[0]["kdc"]
    server = replace(server, environment=server.environment | {"KDC_API_KEY_ENV": "HOSTILE_KEY"})
    found = {}
    for name in names:
        with running(server, scratch / "log") as up:
            for length in range(1, 40, 4):  # memory that the first requests of each length take
                asyncio.run(_warm(Target(up.port, manifest.task.is_pair, 0.0), length))
            target = Target(up.port, manifest.task.is_pair, time.monotonic() + seconds)
            found[name] = asyncio.run(beside(ATTACKS[name], target, up))
    return found


async def _warm(target: Target, length: int) -> None:
    client = Asking(target.port, "/predict")
    await client.post(json.dumps({"inputs": [target.row("word " * length)] * 8}).encode())
    client.close()


def marks_of(found: dict[str, Beside]) -> list[Mark]:
    """The bounds."""
    marks = []
    for name, seen in found.items():
        if name not in WITH_THE_TOKEN:
            marks.append(Mark(f"{name}: memory, MB more", False, _MEMORY_MB, _grown(seen)))
        marks.append(Mark(f"{name}: requests of others that failed", False, 0, len(seen.failed)))
        marks.append(Mark(f"{name}: p99 of the probes, ms", False, _PROBE_MS, _p99(seen.probes)))
    if {"alone", "large-requests"} <= set(found):
        ratio = _p99(found["large-requests"].seconds) / _p99(found["alone"].seconds)
        marks.append(Mark("large-requests: p99 of others, times that alone", False, _TIMES_ALONE, ratio))
    return marks


def _grown(seen: Beside) -> float:
    return max(seen.memory_mb) - seen.memory_mb[0]


def _p99(seconds: Sequence[float]) -> float:
    return 1e3 * float(np.percentile(seconds or [10.0], 99))


def main() -> None:
    """Run the attacks and judge them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--seconds", type=float, default=30, help="of each attack")
    parser.add_argument("--only", help="names of attacks, separated by commas")
    options = parser.parse_args()
    names = list(ATTACKS) if options.only is None else options.only.split(",")
    if unknown := sorted(set(names) - set(ATTACKS)):
        parser.error(f"no such attacks: {', '.join(unknown)}; there are {', '.join(ATTACKS)}")
    with tempfile.TemporaryDirectory() as scratch:
        found = run(options.artifact, names, options.seconds, Path(scratch))
    print("| attack | others answered | failed | p50 ms | p99 ms | probes p99 ms | memory, MB more |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, seen in found.items():
        middle = 1e3 * float(np.median(seen.seconds or [10.0]))
        print(
            f"| {name} | {seen.answered} | {len(seen.failed)} | {middle:.1f} | {_p99(seen.seconds):.1f} | "
            f"{_p99(seen.probes):.1f} | {_grown(seen):.1f} |"
        )
    marks = marks_of(found)
    print("\n" + marks_table(marks))
    sys.exit(0 if all(mark.holds for mark in marks) else 1)


if __name__ == "__main__":
    main()
