"""What stands between clients and grpc: a relay that takes no more frames of a client than an honest one sends.

A client that begins calls and takes them back as fast as it can ("rapid reset", CVE-2023-44487) has grpc 1.85 keep a
hundred megabytes for each connection, whether it has a token or not, and none of grpc's own options bounds that. So
clients connect to this relay. It passes all bytes on as they are, to a socket that only this process's user can reach.
Of a client's bytes it reads no more than the heads of HTTP/2's frames (RFC 9113, section 4.1). Who sends too many of
them is read more slowly, and who sends far too many is cut off.
"""

import asyncio
import errno
import functools
import socket
import time
from collections.abc import Callable
from pathlib import Path

_PREFACE = 24  # bytes that a client sends before its first frame
_HEAD = 9  # bytes of a frame's head: its length in 3, its type in 1, then flags and the stream
# Priorities, resets, settings, and what goes on with a head: of these an honest client sends few.
_CONTINUATION = 9
_SELDOM = frozenset({2, 3, 4, _CONTINUATION})
_OF_CALLS = frozenset({0, 1})  # data and heads
_MOST_CONTINUED = 16  # of the last kind in all: the largest head that grpc takes here needs none (CVE-2024-27316)
# Frames that a connection may send at once, and in each second after: of all kinds, and of those.
_MOST = ((2000, 10_000.0), (400, 200.0))
_LONGEST_S = 2.0  # that a client may have to wait; one that is not read does not show that it left
_UNREAD_S = 10.0  # that a client may leave unread what buffers cannot take
_MOST_ENDING = 8  # connections that have given way to others, and are not over yet
_LINGER_S = 2.0  # that what is left for a client may take to be sent
_BACKLOG, _A_TURN = 1024, 64  # connections that may wait in the kernel, and that are taken in a turn of the loop
_PAUSE_S = 0.1  # until it is asked again whether there is a descriptor for a connection
_WILDCARDS = ("0.0.0.0", "::")
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_BUFFER = 16 * 1024  # bytes that are read at a time: of the smallest frames some hundred


class Frames:
    """Counts the frames of a connection by their heads, and tells how long it is to wait."""

    def __init__(self) -> None:
        self._skip, self._begun = _PREFACE, b""  # bytes until the next head, and what is there of one
        self._left = [float(burst) for burst, _ in _MOST]
        self._counted = time.monotonic()
        self.continued = 0  # frames that went on with a head, so far
        self.called = self._counted  # when the last frame of a call came, by the monotonic clock

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
            if kind in _OF_CALLS:
                self.called = self._counted
            elif kind in _SELDOM:
                seldom += 1
                self.continued += kind == _CONTINUATION
            place += _HEAD + (data[place] << 16 | data[place + 1] << 8 | data[place + 2])
        self._begun, self._skip = data[place:], max(0, place - len(data))
        return found, seldom


class _End(asyncio.BufferedProtocol):
    """One end of a relayed connection, whose bytes go to the other one. It is not read while the other one cannot take
    more."""

    def __init__(self) -> None:
        self.other: _End | None = None
        self.transport: asyncio.Transport | None = None
        self.lost = asyncio.get_running_loop().create_future()
        self._buffer = bytearray(_BUFFER)
        self._early: list[bytes] = []  # what came before the other end was there
        self._reasons: set[str] = set()  # not to read

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def join(self, other: "_End") -> None:
        """Hand bytes to another end from now on."""
        self.other = other
        for data in self._early:
            self.pass_on(data)
        self._early.clear()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.pass_on(bytes(self._buffer[:nbytes]))

    def pass_on(self, data: bytes) -> None:
        """Hand bytes to the other end."""
        if self.other is None:
            self._early.append(data)
        elif self.other.is_open:
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
        if not self.lost.done():
            self.lost.set_result(None)


class _Client(_End):
    """The end of a client."""

    def __init__(self, grpc: _End, closed: Callable[[str], None]) -> None:
        super().__init__()
        self.other, self.frames, self._closed = grpc, Frames(), closed
        self._waiting: asyncio.TimerHandle | None = None  # until it is read again
        self._unread: asyncio.TimerHandle | None = None  # until it is cut off

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.other is not None
        self.other.join(self)
        if self.other.lost.done():
            self.transport.abort()  # type: ignore[union-attr]

    def pause_writing(self) -> None:
        """Give a client that does not read some time: grpc, whose end is not read then, waits for it without end."""
        super().pause_writing()
        self._unread = asyncio.get_running_loop().call_later(_UNREAD_S, self.cut_off, "unread")

    def resume_writing(self) -> None:
        self._cancel(self._unread)
        super().resume_writing()

    def pass_on(self, data: bytes) -> None:
        seconds = self.frames.wait(data)
        if seconds > _LONGEST_S or self.frames.continued > _MOST_CONTINUED:
            self.cut_off("hasty")
            return
        if seconds > 0:
            self.hold("hasty")
            self._waiting = asyncio.get_running_loop().call_later(seconds, self.release, "hasty")
        super().pass_on(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._cancel(self._waiting)
        self._cancel(self._unread)
        super().connection_lost(error)

    def cut_off(self, reason: str) -> None:
        """End the connection at once."""
        if self.is_open:
            assert self.transport is not None
            self.transport.abort()
            self._closed(reason)

    def _cancel(self, timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


class Relay:
    """Listens in place of grpc.

    Args:
        grpc: the socket at which grpc listens.
        most: connections that there may be. For one beyond them the one on which the longest no call came is closed; it
            is closed itself where there were calls on all of them a short while ago.
        silent_s: seconds without a call that are no short while: more than a call may take.
        closed: is told of each connection that is closed, and why: "many", "idle", "hasty" or "unread".
    """

    def __init__(self, grpc: Path, most: int, closed: Callable[[str], None], *, silent_s: float) -> None:
        self._grpc, self._most, self._closed, self._silent_s = grpc, most, closed, silent_s
        self._listeners: list[socket.socket] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._clients: set[_Client] = set()  # those that are connected, and were not closed

    def start(self, host: str, port: int, *, shared: bool) -> None:
        """Listen; other processes may do so at the same address where it is `shared`.

        Raises:
            OSError: it cannot listen there.
        """
        self._listeners = listeners(host, port, shared=shared)
        for each in self._listeners:
            each.setblocking(False)
            self._listen(each)

    def _listen(self, listener: socket.socket) -> None:
        if listener in self._listeners:  # it has not been closed meanwhile
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Take the connections that wait, many in a turn: asyncio's own server takes one."""
        loop = asyncio.get_running_loop()
        for _ in range(_A_TURN):
            try:
                client = listener.accept()[0]
            except (BlockingIOError, ConnectionAbortedError):  # none is left; or this one has left
                return
            except OSError:  # no descriptor is left: asked again at once, it would say so again
                loop.remove_reader(listener)
                loop.call_later(_PAUSE_S, self._listen, listener)
                return
            if len(self._connections) >= self._most and not self._make_room():
                client.close()
                self._closed("many")
                continue
            connection = loop.create_task(self._relay(client))
            self._connections.add(connection)
            connection.add_done_callback(self._connections.discard)

    def _make_room(self) -> bool:
        """Close the connection on which the longest no call came, unless that is not long ago."""
        silent = min(self._clients, key=lambda client: client.frames.called, default=None)
        if silent is None or time.monotonic() - silent.frames.called < self._silent_s:
            return False
        if len(self._connections) >= self._most + _MOST_ENDING:
            return False
        self._clients.discard(silent)
        silent.cut_off("idle")
        return True

    async def _relay(self, client: socket.socket) -> None:
        """Relay one connection until both of its ends are lost, or this is cancelled."""
        loop = asyncio.get_running_loop()
        grpc: _End | None = None
        end: _Client | None = None
        try:
            _, grpc = await loop.create_unix_connection(_End, str(self._grpc))
            _, end = await loop.connect_accepted_socket(functools.partial(_Client, grpc, self._closed), client)
            self._clients.add(end)
            await asyncio.wait([end.lost, grpc.lost])
        except OSError:  # no descriptor is left, the client has left already, or the service ends
            pass
        finally:
            for each in (grpc, end):
                if each is not None and each.transport is not None:
                    each.transport.abort()
            if end is None:
                client.close()
            else:
                self._clients.discard(end)

    def close(self) -> None:
        """Take no more connections than those that wait; what there is stays until grpc or the client ends it."""
        made, self._listeners = self._listeners, []
        for each in made:
            self._accept(each)
            asyncio.get_running_loop().remove_reader(each)
            each.close()

    async def end(self, seconds: float) -> None:
        """Wait until all connections are over, and end those that are not by then."""
        if self._connections:
            _, late = await asyncio.wait(self._connections, timeout=seconds)
            for each in late:
                each.cancel()


def listeners(host: str, port: int, *, shared: bool) -> list[socket.socket]:
    """Sockets that listen at all addresses of a host that this machine has; all addresses of IPv4 or IPv6 are those of
    both, as they are for grpc.

    Raises:
        OSError: it cannot listen at one of them, or has none of them.
    """
    if host in _WILDCARDS and socket.has_dualstack_ipv6():
        dual = {"family": socket.AF_INET6, "dualstack_ipv6": True}
        return [socket.create_server(("::", port), backlog=_BACKLOG, reuse_port=shared, **dual)]  # type: ignore[arg-type]
    made: list[socket.socket] = []
    missing: OSError | None = None
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # a name may have an address twice
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
        try:
            made.append(socket.create_server(address[:2], family=family, backlog=_BACKLOG, reuse_port=shared))
        except OSError as error:
            if error.errno not in _NOT_HERE:
                for each in made:
                    each.close()
                raise
            missing = error
    if missing is not None and not made:
        raise missing
    return made
