"""What stands between clients and grpc: a relay that takes no more frames of a client than an honest one sends.

A client that begins calls and takes them back as fast as it can ("rapid reset", CVE-2023-44487) has grpc 1.85 keep a
hundred megabytes for each connection, whether it has a token or not, and none of grpc's own options bounds that. So
clients connect to this relay. It passes all bytes on as they are, to a socket that only this process's user can reach.
Of a client's bytes it reads no more than the heads of HTTP/2's frames (RFC 9113, section 4.1); who sends too many of
them is read more slowly, and whose head does not end is cut off.
"""

import asyncio
import time
from pathlib import Path

_PREFACE = 24  # bytes that a client sends before its first frame
_HEAD = 9  # bytes of a frame's head: its length in 3, its type in 1, then flags and the stream
# Priorities, resets, settings, and what goes on with a head: of these an honest client sends few.
_CONTINUATION = 9
_SELDOM = frozenset({2, 3, 4, _CONTINUATION})
_MOST_CONTINUED = 16  # of the last kind in all: the largest head that grpc takes here needs none (CVE-2024-27316)
# Frames that a connection may send at once, and in each second after: of all kinds, and of those.
_MOST = ((2000, 10_000.0), (200, 50.0))
_LINGER_S = 2.0
_BUFFER = 16 * 1024  # bytes that are read at a time: of the smallest frames some hundred


class Frames:
    """Counts the frames of a connection by their heads, and tells how long it is to wait."""

    def __init__(self) -> None:
        self._skip, self._begun = _PREFACE, b""  # bytes until the next head, and what is there of one
        self._left = [float(burst) for burst, _ in _MOST]
        self._counted = time.monotonic()
        self.continued = 0  # frames that went on with a head, so far

    def wait(self, data: bytes) -> float:
        """Seconds until more of a client may be read, after these bytes; 0 where it keeps to what it may send."""
        now = time.monotonic()
        passed, self._counted = now - self._counted, now
        longest = 0.0
        for place, (found, (burst, rate)) in enumerate(zip(self._in(data), _MOST, strict=True)):
            self._left[place] = min(burst, self._left[place] + rate * passed) - found
            longest = max(longest, -self._left[place] / rate)
        return longest

    def _in(self, data: bytes) -> tuple[int, int]:
        """How many frames begin in the next bytes, and how many of these are of the seldom kinds."""
        data, place, found, seldom = self._begun + data, self._skip, 0, 0
        end = len(data) - _HEAD
        while place <= end:
            kind, found = data[place + 3], found + 1
            if kind in _SELDOM:
                seldom += 1
                self.continued += kind == _CONTINUATION
            place += _HEAD + (data[place] << 16 | data[place + 1] << 8 | data[place + 2])
        self._begun, self._skip = data[place:], max(0, place - len(data))
        return found, seldom


class _End(asyncio.BufferedProtocol):
    """One end of a relayed connection, whose bytes go to the other one. It is not read while the other one cannot take
    more."""

    def __init__(self, other: "_End | None" = None) -> None:
        self.other = other
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray(_BUFFER)
        self._reasons: set[str] = set()  # not to read

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.pass_on(bytes(self._buffer[:nbytes]))

    def pass_on(self, data: bytes) -> None:
        """Hand bytes to the other end."""
        if self.other is not None and self.other.is_open:
            assert self.other.transport is not None
            self.other.transport.write(data)

    @property
    def is_open(self) -> bool:
        """Whether it is connected, and does not close."""
        return self.transport is not None and not self.transport.is_closing()

    def hold(self, reason: str) -> None:
        """Read nothing until this reason is gone."""
        self._reasons.add(reason)
        if self.is_open:
            assert self.transport is not None
            self.transport.pause_reading()

    def release(self, reason: str) -> None:
        """Read again, unless there is another reason not to."""
        self._reasons.discard(reason)
        if self.is_open and not self._reasons:
            assert self.transport is not None
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.hold("full")

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.release("full")

    def connection_lost(self, error: Exception | None) -> None:
        other, self.other, self.transport = self.other, None, None  # a circle would stay until garbage is collected
        if other is not None and other.transport is not None:
            other.transport.close()  # once it has what is left, which a client that does not read never has
            asyncio.get_running_loop().call_later(_LINGER_S, other.transport.abort)


class _Client(_End):
    """The end of a client."""

    def __init__(self, relay: "Relay") -> None:
        super().__init__()
        self._relay, self._frames = relay, Frames()
        self._early: list[bytes] = []  # what came before grpc was there
        self._opening: asyncio.Task[None] | None = None
        self._waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        if len(self._relay.clients) >= self._relay.most:
            self.transport.abort()
            return
        self._relay.clients.add(self)
        self.hold("opening")
        self._opening = asyncio.get_running_loop().create_task(self._open(self.transport))

    async def _open(self, transport: asyncio.Transport) -> None:
        """Connect to grpc."""
        loop, path = asyncio.get_running_loop(), str(self._relay.grpc)
        try:
            grpc, self.other = await loop.create_unix_connection(lambda: _End(self), path)
        except OSError:  # no descriptor is left, or the service ends
            transport.abort()
            return
        if transport.is_closing():
            grpc.close()
            return
        grpc.writelines(self._early)
        self._early.clear()
        self.release("opening")

    def pass_on(self, data: bytes) -> None:
        seconds = self._frames.wait(data)
        if self._frames.continued > _MOST_CONTINUED:
            assert self.transport is not None
            self.transport.abort()
            return
        if seconds > 0:
            self.hold("hasty")
            self._waiting = asyncio.get_running_loop().call_later(seconds, self.release, "hasty")
        if self.other is None:
            self._early.append(data)
        else:
            super().pass_on(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._relay.clients.discard(self)
        self._opening = None
        if self._waiting is not None:
            self._waiting.cancel()
        super().connection_lost(error)


class Relay:
    """Listens in place of grpc.

    Args:
        grpc: the socket at which grpc listens.
        most: connections that there may be; those beyond are closed.
    """

    def __init__(self, grpc: Path, most: int) -> None:
        self.grpc, self.most = grpc, most
        self.clients: set[_Client] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int, *, shared: bool) -> None:
        """Listen; other processes may do so at the same address where it is `shared`.

        Raises:
            OSError: it cannot listen there.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Client(self), host, port, reuse_port=shared)

    def close(self) -> None:
        """Take no more connections; those that there are stay until grpc or the client ends them."""
        if self._server is not None:
            self._server.close()
