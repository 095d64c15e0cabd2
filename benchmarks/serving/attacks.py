"""Attacks on a service that asks for a token."""

import asyncio
import contextlib
import functools
import itertools
import json
import random
import socket
import string
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from benchmarks.serving.client import Client

KEY = "hostile-benchmark"
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
AUTHORIZED = b"Authorization: Bearer " + KEY.encode() + b"\r\n"
ROW = "a row of words such as others send"
GONE = (OSError, EOFError, ValueError)  # the service hung up

Attack = Callable[["Target"], Awaitable[None]]


@dataclass(frozen=True)
class Target:
    port: int
    is_pair: bool
    until: float
    admin_port: int | None = None
    grpc_port: int | None = None
    most_connections: int = 1024
    done: list[float] = field(default_factory=list)  # times of answers
    others: str = ROW

    def goes_on(self) -> bool:
        return time.monotonic() < self.until

    def row(self, text: str) -> object:
        return [text, text] if self.is_pair else [text]


@contextlib.asynccontextmanager
async def connected(
    target: Target, port: int | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port or target.port)
    try:
        yield reader, writer
    finally:
        writer.close()


def again_and_again(connections: int) -> Callable[[Attack], Attack]:
    def repeat(attack: Attack) -> Attack:
        async def one(target: Target) -> None:
            while target.goes_on():
                with contextlib.suppress(*GONE):
                    await attack(target)
                await asyncio.sleep(0)

        async def all_of_them(target: Target) -> None:
            await asyncio.gather(*(one(target) for _ in range(connections)))

        return all_of_them

    return repeat


async def flood(target: Target, writer: asyncio.StreamWriter, data: bytes) -> None:
    while target.goes_on():
        writer.write(data)
        await asyncio.wait_for(writer.drain(), 5)


@again_and_again(4)
async def trailers(target: Target) -> None:
    async with connected(target) as (_, writer):
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n")
        await flood(target, writer, b"a: b\r\n" * 1000)


@again_and_again(40)
async def pipelining(target: Target) -> None:
    async with connected(target) as (_, writer):
        await flood(target, writer, b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n" * 500)


@again_and_again(4)
async def pipelining_that_reads(target: Target) -> None:
    async with connected(target) as (reader, writer):
        reading = asyncio.create_task(_read(reader))
        try:
            await flood(target, writer, b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n" * 500)
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


@again_and_again(300)
async def slow_readers(target: Target) -> None:
    """Large replies, read just fast enough to keep the connection."""
    body = json.dumps({"inputs": [target.row("a")] * 16}).encode()
    asked = HEAD + AUTHORIZED + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(client, ("127.0.0.1", target.port))
        await loop.sock_sendall(client, 4 * asked)
        while target.goes_on():
            await asyncio.sleep(1)
            async with asyncio.timeout(5):
                if not await loop.sock_recv(client, 6600):
                    return


@again_and_again(64)
async def metrics(target: Target) -> None:
    async with connected(target) as (reader, writer):
        for path in itertools.cycle((b"/metrics", b"/docs.json", b"/schema.json")):
            if not target.goes_on():
                return
            writer.write(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))


@again_and_again(100)
async def slow_probes(target: Target) -> None:
    async with connected(target, target.admin_port) as (_, writer):
        for byte in itertools.cycle(b"GET /readyz HTTP/1.1\r\nx: " + b"y" * 100):
            if not target.goes_on():
                return
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(1)


@again_and_again(300)
async def probe_flood(target: Target) -> None:
    async with connected(target, target.admin_port) as (reader, writer):
        writer.write(b"G")
        await asyncio.wait_for(reader.read(), max(0.1, target.until - time.monotonic()))


@again_and_again(70)
async def large_probes(target: Target) -> None:
    """A hundred headers of 64 kB on too many connections."""
    async with connected(target, target.admin_port) as (_, writer):
        writer.write(b"GET /readyz HTTP/1.1\r\n")
        for _ in range(98):
            writer.write(b"a: " + b"x" * 65_000 + b"\r\n")
            await asyncio.wait_for(writer.drain(), 5)
        await asyncio.sleep(1)


@again_and_again(64)
async def resets(target: Target) -> None:
    async with connected(target) as (reader, writer):
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.read(4096)
        client = writer.get_extra_info("socket")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@again_and_again(16)
async def refused_bodies(target: Target) -> None:
    body = b"1\r\nx\r\n" * 300_000 + b"0\r\n\r\n"
    async with connected(target) as (reader, writer):
        reading = asyncio.create_task(_read(reader))
        try:
            await flood(target, writer, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body)
        finally:
            reading.cancel()


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


async def idle(target: Target) -> None:
    await _hold(target, b"")


async def held(target: Target) -> None:
    await _hold(target, b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n")


async def begun(target: Target) -> None:
    await _hold(target, b"GET /info HTTP/1.1\r\nHo")


async def unfinished(target: Target) -> None:
    """The token makes the service wait longer."""
    await _hold(target, HEAD + AUTHORIZED + b"Content-Length: 5\r\n\r\n")


async def _hold(target: Target, asked: bytes) -> None:
    """Opens a quarter more connections than allowed. Over a thousand a second would starve this process's probes."""
    a_second = min(1000, target.most_connections)

    async def one(delay: float) -> None:
        await asyncio.sleep(delay)
        while target.goes_on():
            with contextlib.suppress(*GONE, TimeoutError):
                async with connected(target) as (reader, writer):
                    writer.write(asked)
                    while await asyncio.wait_for(reader.read(4096), max(0.1, target.until - time.monotonic())):
                        pass
            await asyncio.sleep(0.5)

    await asyncio.gather(*(one(place / a_second) for place in range(target.most_connections * 5 // 4)))


@again_and_again(20)
async def churn(target: Target) -> None:
    async with connected(target) as (_, writer):
        writer.write(HEAD)


@again_and_again(64)
async def small_chunks(target: Target) -> None:
    body = (b"10\r\n" + b" " * 16 + b"\r\n") * 80_000 + b"0\r\n\r\n"
    async with connected(target) as (reader, writer):
        reading = asyncio.create_task(_read(reader))
        try:
            await flood(target, writer, HEAD + AUTHORIZED + b"Transfer-Encoding: chunked\r\n\r\n" + body)
        finally:
            reading.cancel()


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
        with contextlib.suppress(*GONE):
            async with connected(target) as (reader, writer):
                writer.write(HEAD + framing)
                await asyncio.wait_for(reader.read(4096), 1)


async def long_texts(target: Target) -> None:
    body = json.dumps({"inputs": [target.row("all of it is text " * 5500)] * (9 if target.is_pair else 18)}).encode()
    await _post_on(target, body, connections=4)


async def long_words(target: Target) -> None:
    """Texts without spaces are tokenised whole."""
    body = json.dumps({"inputs": [target.row("all-of-it-is-text" * 5500)] * (9 if target.is_pair else 18)}).encode()
    await _post_on(target, body, connections=4)


@functools.cache
def nested_bodies() -> tuple[tuple[str, bytes], ...]:
    """Routes and bodies that decoding grows up to fifty times. `{}` is the model's name."""

    def filled(before: bytes, unit: bytes, after: bytes) -> bytes:
        return before + unit * ((2_000_000 - len(before) - len(after)) // len(unit)) + after

    text = b'{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES","data":["w1"]}],"parameters":'
    deep = b"[" * 900 + b"]" * 900 + b","
    keys = b'{"a":' * 900 + b"1" + b"}" * 900 + b","
    distinct = b",".join(b'"%x":0' % number for number in range(180_000))
    options = b",".join(b'"%d":null' % number for number in range(255))
    questions = b",".join(b'"q%d":{"type":"choice","criteria":{%b}}' % (number, options) for number in range(400))
    choices = b",".join(b'{"value":"%d"}' % number for number in range(255))
    choice = b'{"type":"choice","instructions":"x","choices":[%b]},' % choices
    v2 = "/v2/models/{}/infer"
    return (
        (v2, filled(text + b'{"x":[', b"[],", b"0]}}")),
        (v2, filled(text + b'{"x":[', deep, b"0]}}")),
        (v2, filled(text + b'{"x":[', keys, b"0]}}")),
        (v2, filled(text + b'{"x":[', b'"a",', b"0]}}")),
        (v2, text + b"{" + distinct + b"}}"),
        ("/predict", filled(b'{"inputs":[', b"[],", b"[]]}")),
        ("/predict", filled(b'{"inputs":"w1","a":[', keys, b"0]}")),
        ("/predict", filled(b'{"inputs":[', b'["a"],', b'["a"]]}')),
        ("/classify", filled(b'{"input":"w1","user":[', deep, b"0]}")),
        ("/v1/moderations", filled(b'{"input":[', b'"a",', b"{}]")),
        ("/v1/systemone", b'{"state":"w1","questions":{%b}}' % questions),
        (
            "/v1/systemone",
            filled(b'{"questions":{"q":{"type":"noul"}},"state":[', b"[" * 90 + b"]" * 90 + b",", b"0]}"),
        ),
        ("/v1/decisions", filled(b'{"input":"w1","questions":[', choice, choice[:-1] + b"]}")),
    )


async def first_model(target: Target) -> str:
    client = Asking(target.port, "/predict")
    reply = await client.post(json.dumps({"inputs": [target.row("w1")]}).encode())
    client.close()
    return reply.headers["x-model"]


@again_and_again(60)
async def nested_json(target: Target) -> None:
    name = await first_model(target)
    for path, body in itertools.cycle(nested_bodies()):
        client = Asking(target.port, path.format(name))
        try:
            await client.post(body)
        finally:
            client.close()
        await asyncio.sleep(1)  # or others wait for the network
        if not target.goes_on():
            return


async def large_requests(target: Target) -> None:
    body = json.dumps({"inputs": [target.row(ROW)] * 1024}).encode()
    await _post_on(target, body, connections=1)


async def many_labels(target: Target) -> None:
    rows = [target.row(ROW)] * 1024
    bodies = (json.dumps({"inputs": rows} | more).encode() for more in ({}, {"top_k": 5}))
    await asyncio.gather(*(_post_on(target, body, connections=2) for body in bodies))


async def without_spaces(target: Target) -> None:
    """Each character normalises to up to eighteen."""
    texts = ["\ufdfa" * 100_000, "\U0001f600" * 100_000, "\ufdfa" * 500]
    body = json.dumps({"inputs": [target.row(text) for text in texts]}, ensure_ascii=False).encode()
    await _post_on(target, body, connections=12)


async def long_words_of_100(target: Target) -> None:
    """Words of a hundred letters are WordPiece's slowest case."""
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=100)) for _ in range(200)]
    rows = [target.row(" ".join(draw.choices(words, k=10 if target.is_pair else 20))) for _ in range(1000)]
    await _post_on(target, json.dumps({"inputs": rows}).encode(), connections=12)


async def endless_words(target: Target) -> None:
    rows = [target.row(text) for text in ["x" * 90_000, "x" + " " * 90_000] * (5 if target.is_pair else 10)]
    await _post_on(target, json.dumps({"inputs": rows}).encode(), connections=12)


async def long_pairs(target: Target) -> None:
    """The service reads both texts whole, to compare their lengths."""
    draw = random.Random(0)
    text = " ".join("".join(draw.choices(string.ascii_lowercase, k=100)) for _ in range(1970))
    await _post_on(target, json.dumps({"inputs": [target.row(text)] * 5}).encode(), connections=8)


async def retries(target: Target) -> None:
    await asyncio.gather(_asking_again(target), _newcomers(target))


@again_and_again(900)
async def _asking_again(target: Target) -> None:
    client = Asking(target.port, "/predict")
    body = json.dumps({"inputs": [target.row(ROW)]}).encode()
    try:
        while target.goes_on():
            await client.post(body)
    finally:
        client.close()


async def _newcomers(target: Target) -> None:
    arrived = set()
    while target.goes_on():
        arrived.add(asyncio.create_task(_newcomer(target)))
        await asyncio.sleep(0.05)
    await asyncio.gather(*arrived)


async def _newcomer(target: Target) -> None:
    with contextlib.suppress(*GONE, TimeoutError):
        async with asyncio.timeout(10), connected(target) as (reader, writer):
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            await reader.read()


async def _post_on(target: Target, body: bytes, *, connections: int) -> None:
    async def one() -> None:
        client = Asking(target.port, "/predict")
        while target.goes_on():
            try:
                reply = await client.post(body)
            except GONE:
                continue
            if reply.status == 200:
                target.done.append(time.monotonic())
            elif reply.status in (413, 429):
                await asyncio.sleep(0.2)
        client.close()

    await asyncio.gather(*(one() for _ in range(connections)))


class Asking(Client):
    def _head(self, length: int) -> bytes:
        return HEAD + AUTHORIZED + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % length


async def alone(target: Target) -> None:
    await asyncio.sleep(target.until - time.monotonic())


ATTACKS: dict[str, Attack] = {
    "alone": alone,
    "trailers": trailers,
    "pipelining": pipelining,
    "pipelining-that-reads": pipelining_that_reads,
    "unread-answers": unread_answers,
    "slow-readers": slow_readers,
    "metrics": metrics,
    "slow-probes": slow_probes,
    "probe-flood": probe_flood,
    "large-probes": large_probes,
    "resets": resets,
    "refused-bodies": refused_bodies,
    "after-an-answer": after_an_answer,
    "unfinished-heads": unfinished_heads,
    "large-heads": large_heads,
    "slowloris": slowloris,
    "idle": idle,
    "held": held,
    "begun": begun,
    "unfinished": unfinished,
    "churn": churn,
    "small-chunks": small_chunks,
    "half-bodies": half_bodies,
    "odd-framings": odd_framings,
    "long-texts": long_texts,
    "long-words": long_words,
    "nested-json": nested_json,
    "large-requests": large_requests,
    "many-labels": many_labels,
    "long-words-of-100": long_words_of_100,
    "without-spaces": without_spaces,
    "endless-words": endless_words,
    "long-pairs": long_pairs,
    "retries": retries,
}
# Settings bound the memory of these attacks. `nested-json`, `slow-readers`, `small-chunks`, `unfinished` and
# `grpc-unread` have the token too, but may not take memory.
WITH_THE_TOKEN = (
    "alone",
    "long-texts",
    "long-words",
    "large-requests",
    "many-labels",
    "long-words-of-100",
    "without-spaces",
    "endless-words",
    "long-pairs",
    "retries",
    "grpc-contents",
)
OVERLOADS = ("slow-readers", "retries")  # other clients are refused too
