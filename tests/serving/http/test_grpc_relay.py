"""The relay before grpc: bytes pass as they are, hasty clients wait, endless heads are cut off, nothing stays."""

import asyncio
import contextlib
import errno
import gc
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import uvloop
from live import free_port

from kdc.serving.http import grpc_relay
from kdc.serving.http.grpc_relay import Frames, Relay

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, CONTINUATION = 0, 1, 3, 9


def frame(kind: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2 (RFC 9113, 4.1) of stream 1."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, 0]) + struct.pack(">I", 1) + payload


RESETS = frame(RESET, b"\0\0\0\x08")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [1000.0]
    monkeypatch.setattr("kdc.serving.http.grpc_relay.time.monotonic", lambda: now[0])
    return now  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(20))
def test_frames_are_found_however_their_bytes_arrive(seed: int) -> None:
    # The bugs to catch: a head that is split between two reads is missed, or a payload is read as heads.
    generator = random.Random(seed)
    kinds = [generator.choice([DATA, HEADERS, RESET, CONTINUATION]) for _ in range(200)]
    sent = PREFACE + b"".join(frame(kind, frame(CONTINUATION) * generator.randrange(8)) for kind in kinds)
    frames, place = Frames(), 0
    while place < len(sent):
        size = generator.choice([1, 2, 5, 9, 40, 3000])
        frames.wait(sent[place : place + size])
        place += size
    assert frames.continued == kinds.count(CONTINUATION)


def test_a_connection_may_take_back_four_hundred_calls_at_once_and_two_hundred_a_second(clock: list[float]) -> None:
    frames = Frames()
    assert frames.wait(PREFACE + 400 * RESETS) == 0
    assert frames.wait(100 * RESETS) == pytest.approx(0.5)
    clock[0] += 0.5
    assert frames.wait(b"") == 0
    clock[0] += 60  # what it saves up is no more than it may send at once
    assert frames.wait(440 * RESETS) == pytest.approx(0.2)


def test_an_honest_client_does_not_wait(clock: list[float]) -> None:
    """Two thousand calls a second, each a head, a message, a window and a ping."""
    frames = Frames()
    frames.wait(PREFACE)
    for _ in range(100):
        clock[0] += 0.01
        assert frames.wait(20 * (frame(HEADERS, b"x" * 60) + frame(DATA, b"x" * 200) + frame(8) + frame(6))) == 0
    assert frames.wait(frame(DATA, b"x" * 1_000_000)) == 0


def relayed(
    check: Callable[[int, Relay, list[bytes]], Awaitable[None]],
    folder: Path,
    *,
    most: int = 8,
    closes: bool = False,
    tells: str = "",
) -> None:
    """Run a check against a relay in uvloop, with its port, itself, and what came to the socket behind it, which gives
    all bytes back, or `closes` at the first ones. The relay has to tell of connections that it closed for these
    reasons, and of no other ones."""

    async def main() -> None:
        received: list[bytes] = []

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65536):
                    received.append(data)
                    writer.write(data)
                    await writer.drain()
                    if closes:
                        break
            writer.close()

        async with await asyncio.start_unix_server(echo, folder / "grpc"):
            closed: list[str] = []
            port, relay = free_port(), Relay(folder / "grpc", most, closed.append, silent_s=0.3)
            relay.start("127.0.0.1", port, shared=False)
            try:
                await asyncio.wait_for(check(port, relay, received), 20)
            finally:
                relay.close()
            assert {*closed} == {*tells.split()}

    uvloop.run(main())


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def test_bytes_pass_as_they_are_both_ways(tmp_path: Path) -> None:
    message = PREFACE + b"".join(frame(DATA, os.urandom(16_384)) for _ in range(300))  # more than all buffers hold

    async def check(port: int, relay: Relay, received: list[bytes]) -> None:
        async with connected(port) as (reader, writer):
            sending = asyncio.ensure_future(_send(writer, message))
            assert await reader.readexactly(len(message)) == message
            await sending
        assert b"".join(received) == message

    relayed(check, tmp_path)


def test_who_takes_calls_back_on_and_on_is_read_slowly_and_others_are_not(tmp_path: Path) -> None:
    async def check(port: int, relay: Relay, received: list[bytes]) -> None:
        async with connected(port) as (_, hasty), connected(port) as (reader, honest):
            sent = PREFACE + 500 * RESETS
            hasty.write(sent)
            while sum(map(len, received)) < len(sent):
                await asyncio.sleep(0.01)
            hasty.write(frame(HEADERS))  # which has to wait for half a second
            await asyncio.sleep(0.1)
            assert sum(map(len, received)) == len(sent)
            honest.write(PREFACE + frame(HEADERS))
            assert await reader.readexactly(len(PREFACE) + 9) == PREFACE + frame(HEADERS)
            while sum(map(len, received)) < len(sent) + 9 + len(PREFACE) + 9:
                await asyncio.sleep(0.01)

    relayed(check, tmp_path)


def test_who_would_have_to_wait_for_long_is_cut_off(tmp_path: Path) -> None:
    # The bug to catch: a client that is not read does not show that it left, and keeps its place from others.
    async def check(port: int, relay: Relay, received: list[bytes]) -> None:
        async with connected(port) as (reader, writer):
            writer.write(PREFACE + 100_000 * RESETS)
            with contextlib.suppress(ConnectionError):
                await reader.read()
        while relay._connections:
            await asyncio.sleep(0.01)
        assert sum(map(len, received)) < 20_000

    relayed(check, tmp_path, tells="hasty")


def test_a_head_that_does_not_end_is_cut_off(tmp_path: Path) -> None:
    async def check(port: int, relay: Relay, received: list[bytes]) -> None:
        async with connected(port) as (reader, writer):
            writer.write(PREFACE + frame(HEADERS) + 16 * frame(CONTINUATION, b"x"))
            await reader.readexactly(len(PREFACE) + 9 + 16 * 10)
            writer.write(frame(CONTINUATION, b"x"))
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        assert len(b"".join(received)) == len(PREFACE) + 9 + 16 * 10

    relayed(check, tmp_path, tells="hasty")


def test_connections_beyond_the_most_are_closed_and_one_that_ends_makes_room(tmp_path: Path) -> None:
    async def check(port: int, relay: Relay, received: list[bytes]) -> None:
        async with connected(port) as (first, one), connected(port) as (second, other):
            for reader, writer in ((first, one), (second, other)):
                writer.write(b"hello")
                assert await reader.readexactly(5) == b"hello"
            async with connected(port) as (reader, _):
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
        while relay._connections:
            await asyncio.sleep(0.01)
        async with connected(port) as (reader, writer):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"

    relayed(check, tmp_path, most=2, tells="many")


def test_the_connection_on_which_the_longest_no_call_came_gives_way_to_another(tmp_path: Path) -> None:
    """Would catch a client that holds all places, and shows with pings that it is there."""

    async def gone(reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""

    async def check(port: int, relay: Relay, received: list[bytes]) -> None:
        async with contextlib.AsyncExitStack() as stack:
            (first, calls), (second, pings), (third, _) = [
                await stack.enter_async_context(connected(port)) for _ in range(3)
            ]
            while len(relay._clients) < 3:
                await asyncio.sleep(0.01)
            calls.write(PREFACE)
            pings.write(PREFACE + frame(HEADERS))
            await first.readexactly(len(PREFACE))
            await second.readexactly(len(PREFACE) + 9)
            await asyncio.sleep(0.4)
            calls.write(frame(HEADERS))
            pings.write(frame(6, b"8 bytes."))
            await first.readexactly(9)
            await second.readexactly(17)
            for silent in (third, second):
                reader, writer = await stack.enter_async_context(connected(port))
                writer.write(b"hello")
                assert await reader.readexactly(5) == b"hello"
                await gone(silent)
            relay._silent_s = 60.0
            refused, _ = await stack.enter_async_context(connected(port))
            await gone(refused)
            calls.write(frame(HEADERS))
            await first.readexactly(9)

    relayed(check, tmp_path, most=3, tells="idle many")


def test_a_client_that_does_not_read_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The bug to catch: grpc waits for such a client without end, which keeps its place and holds up the service's end.
    monkeypatch.setattr(grpc_relay, "_UNREAD_S", 0.2)

    async def check(port: int, relay: Relay, received: list[bytes]) -> None:
        loop = asyncio.get_running_loop()
        with socket.create_connection(("127.0.0.1", port)) as silent, contextlib.suppress(ConnectionError):
            silent.setblocking(False)
            await loop.sock_sendall(silent, PREFACE + frame(DATA, bytes(2**24 - 1)))  # which come back
        while relay._connections:
            await asyncio.sleep(0.01)

    relayed(check, tmp_path, tells="unread")


def test_connections_that_are_not_over_are_ended(tmp_path: Path) -> None:
    async def check(port: int, relay: Relay, received: list[bytes]) -> None:
        async with connected(port) as (reader, writer):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            relay.close()
            await relay.end(0.05)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        await relay.end(0.05)

    relayed(check, tmp_path)


def test_a_client_is_closed_where_grpc_left_before_it_was_there() -> None:
    async def main() -> None:
        grpc = grpc_relay._End()
        grpc.connection_lost(None)
        transport = mock.Mock()
        grpc_relay._Client(grpc, closed=print).connection_made(transport)
        transport.abort.assert_called_once()

    asyncio.run(main())


def test_nothing_stays_of_a_connection_that_is_over(tmp_path: Path) -> None:
    # The bugs to catch: two ends that know each other, or a timer, keep 32 kB of each connection until garbage is
    # collected, which a hundred connections a second do not wait for.
    async def check(port: int, relay: Relay, received: list[bytes]) -> None:
        for _ in range(100):
            async with connected(port) as (reader, writer):
                writer.write(PREFACE + 700 * RESETS)  # which would have to wait for more than a second
                with contextlib.suppress(ConnectionError):
                    await reader.read()
        while relay._connections:
            await asyncio.sleep(0.01)
        left = [each for each in gc.get_objects() if isinstance(each, grpc_relay._End)]
        assert len(left) <= 2  # the last one's

    gc.collect()
    gc.disable()
    try:
        relayed(check, tmp_path, closes=True)
    finally:
        gc.enable()


async def _send(writer: asyncio.StreamWriter, data: Any) -> None:
    writer.write(data)
    await writer.drain()


class Full(socket.socket):
    """A socket whose process has no descriptor left when a connection is to be accepted for the first time."""

    asked = 0

    def accept(self) -> Any:
        self.asked += 1
        if self.asked == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_a_connection_without_a_descriptor_is_taken_later(tmp_path: Path) -> None:
    # The bugs to catch: it is asked for without end meanwhile, which takes all time of the loop, or never again.
    async def check(port: int, relay: Relay, received: list[bytes]) -> None:
        (listener,) = relay._listeners
        asyncio.get_running_loop().remove_reader(listener)
        full = Full(fileno=listener.detach())
        relay._listeners = [full]
        relay._listen(full)
        async with connected(port) as (reader, writer):
            await asyncio.sleep(0.05)
            assert full.asked == 1
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"

    relayed(check, tmp_path)


@pytest.mark.parametrize(
    ("host", "answers"),
    [("0.0.0.0", {"127.0.0.1", "::1"}), ("::", {"127.0.0.1", "::1"}), ("127.0.0.1", {"127.0.0.1"})],
)
def test_all_addresses_of_one_family_are_those_of_both(host: str, answers: set[str]) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    port, found = free_port(), set()
    made = grpc_relay.listeners(host, port, shared=False)
    for address in ("127.0.0.1", "::1"):
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=5):
            found.add(address)
    for each in made:
        each.close()
    assert found == answers


def test_an_address_that_this_machine_lacks_is_passed_by_where_it_has_another(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    addresses = ("192.0.2.1", "127.0.0.1", "127.0.0.1")
    infos = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: infos)
    (made,) = grpc_relay.listeners("a-name", port, shared=False)
    assert made.getsockname() == ("127.0.0.1", port)
    with pytest.raises(OSError, match="in use"):
        grpc_relay.listeners("a-name", port, shared=False)
    made.close()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: infos[:1])
    with pytest.raises(OSError, match="assign requested address"):
        grpc_relay.listeners("a-name", port, shared=False)
