"""uvicorn's HTTP/1.1 with bounds on what clients can take, and errors in JSON.

With uvicorn 0.54 one client could hold gigabytes, or all connections, by endless heads or trailers, pipelined
requests, or bodies that continue after a refusal.

httptools 0.9 would answer a request hidden in the body of a request with `Upgrade`. So that request is parsed again
without the header.
"""

import asyncio
import contextlib
import math
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NoReturn

import httptools
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from kdc.serving.http.accepting import Accepting, most_connections
from kdc.serving.http.metrics import Ended, Metrics
from kdc.serving.http.replies import error_response
from kdc.serving.http.settings import ServeSettings

MAX_HEAD_BYTES = 16 * 1024  # of a head and trailers
MAX_FIELDS = 100  # headers and trailers
_TOO_LARGE = f"the headers are too large; at most {MAX_FIELDS} of {MAX_HEAD_BYTES} bytes together"
HEAD_S = 10.0  # for a head, from its first byte or the connection's start
WRITE_S = 10.0  # in which a client must read `LEAST_READ`, or all
LEAST_READ = 64 * 1024
IDLE_S = 0.5  # of silence; then another connection may replace this one
STALL_S = 0.05  # the same for an incomplete request, if a complete one waits
LINGER_S = 2.0  # to receive the rest of an answered request
LINGER_BYTES = 32 * 1024 * 1024  # of that rest, if the connection then closes
_LINGER_REFUSED = 256 * 1024  # the same after invalid HTTP or a large head
_MOST_IN_KERNEL = 64 * 1024  # unsent bytes there, which count towards a container's limit
_PIECE = 4096  # bytes parsed at a time, so few requests come out at once
# A body has at most `_MOST_TINY` + bytes / `_CHUNK` chunks: each costs as much as thousands of bytes.
_CHUNK, _MOST_TINY = 256, 1000
_MOST_WAITING = 64 * 1024  # unparsed bytes behind an unanswered request


class _Flow(FlowControl):
    """The app cannot resume reading while pipelined requests wait."""

    held = False

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()


class _Transport:
    def __init__(self, protocol: "BoundedProtocol") -> None:
        self._protocol = protocol
        self._head: bytes | None = None
        self.is_closing, self.close = protocol.transport.is_closing, protocol.close_gently

    def write(self, data: bytes) -> None:
        """The head waits for the body's first part, or `pause_writing` would not be called for the body."""
        running = self._protocol.running  # not kept: that would be a reference cycle
        if self._head is None and running.response_started and running.scope["method"] != "HEAD":
            self._head = data
        elif self._head:
            self._protocol.write(self._head, data)
            self._head = b""
        else:
            self._protocol.write(data)


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `front` wraps the server's app, outside its middleware."""

    front: ClassVar[Callable[[ASGIApp], ASGIApp] | None] = None
    settings: ClassVar[ServeSettings] = ServeSettings()
    metrics: ClassVar[Metrics | None] = None
    accepting: ClassVar[Accepting | None] = None
    flow: _Flow

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if BoundedProtocol.front is not None:
            self.app = BoundedProtocol.front(self.app)
        self.timeout_keep_alive: float = BoundedProtocol.settings.keep_alive_s  # type: ignore[assignment]
        self._clock: asyncio.TimerHandle | None = None  # aborts slow senders
        self._unread: asyncio.TimerHandle | None = None  # aborts slow readers
        self.running: Any = None  # the request in work; `cycle` is the newest
        self._received = b""  # unparsed, because requests wait
        self._in_head = False
        self._is_between = False  # between two requests
        self._head_bytes = self._fields = 0
        self._left = 0  # body bytes to come, by Content-Length
        self._chunks = self._chunked = 0  # chunks, their bytes
        self._stalled = 0  # bytes since the last head or piece of a body
        self._refusal = (400, "this is not a valid HTTP request")
        self._ending = False  # no answers; input is dropped
        self._deaf = False  # input is dropped; earlier requests are still answered
        self._linger = LINGER_BYTES
        self._is_unsent = False  # the last answer is not sent yet
        # Connections that await a request or its rest, the longest idle first.
        self._idle: dict[BoundedProtocol, float] = vars(self.server_state).setdefault("kdc_idle", {})
        self._written = 0  # bytes of the last write
        # Unsent bytes, the longest waiting connection first.
        self._unsent: dict[BoundedProtocol, int] = vars(self.server_state).setdefault("kdc_unsent", {})
        self._given_up: set[BoundedProtocol] = vars(self.server_state).setdefault("kdc_given_up", set())

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """If there are too many connections, end the longest idle one, else refuse this one."""
        super().connection_made(transport)
        if BoundedProtocol.accepting is not None:
            BoundedProtocol.accepting.more()
        self.flow = _Flow(transport)
        transport.set_write_buffer_limits(high=0)
        if (connection := transport.get_extra_info("socket")) is not None:
            with contextlib.suppress(OSError, AttributeError):  # a Unix socket, or not supported
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MOST_IN_KERNEL)
        self._start_clock(HEAD_S)
        has_place = len(self.connections) <= most_connections(self.settings) or self._takes_a_place()
        if has_place:
            self._now_idle()
            self._count()
        else:
            self._ending = True
            self._count("refused")
            self._write(503, "too many connections; try again in 1 s", {"Retry-After": "1"})
            transport.close()  # not gently: refused connections must not keep descriptors

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the running request that its client left. uvicorn tells only the newest one."""
        self._idle.pop(self, None)
        self._unsent.pop(self, None)
        self._given_up.discard(self)
        _stop(self._clock)
        _stop(self._unread)
        self._unset_keepalive_if_required()  # else uvicorn keeps 8 kB for 75 s
        if self.running is not None and not self.running.response_complete:
            self.running.disconnected = True
            self.running.message_event.set()
        super().connection_lost(exc)
        self._received = b""
        for cycle in (self.cycle, self.running):
            _forget_body(cycle)
        self.pipeline.clear()
        self._forget_request()  # a reference cycle, else freed late
        self._count()

    def data_received(self, data: bytes) -> None:
        if self._ending or self._deaf:
            self._linger -= len(data)
            if self._linger < 0:
                self.transport.abort()
        else:
            self._parse(self._received + data if self._received else data)

    def _parse(self, data: bytes) -> None:
        at = 0
        while at < len(data) and not self._waits() and not self._ending and not self._deaf:
            size = max(_PIECE, self._left)
            self._feed(data[at : at + size])
            at += size
        self._received = b"" if self._ending or self._deaf else data[at:]
        if self._waits() and not self._ending:
            self._hold()
            if len(self._received) > _MOST_WAITING:
                self.transport.abort()

    def _waits(self) -> bool:
        return bool(self.pipeline) or self._is_unsent

    def _hold(self) -> None:
        _stop(self._clock)
        self.flow.held = True
        self.flow.pause_reading()

    def _feed(self, piece: bytes) -> None:
        self._stalled += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_again(piece[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(*self._refusal)
        else:
            if self._stalled > MAX_HEAD_BYTES + _PIECE:  # httptools reports only whole headers
                self._refuse(431, _TOO_LARGE)

    def _read_again(self, rest: bytes) -> None:
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(405, "this is no proxy")
            return
        head = [b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(token for token in tokens if token.lower() not in (b"upgrade", b"http2-settings"))
            if name not in (b"upgrade", b"http2-settings") and (value or name != b"connection"):
                head.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._feed(b"\r\n".join(head) + b"\r\n\r\n" + rest)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self.running = cycle
        if cycle.more_body:
            self._now_idle()
        super()._start_asgi_task(cycle, app)

    def write(self, *parts: bytes) -> None:
        """A head is small, so only the last part counts as unsent."""
        self._written = len(parts[-1])
        self.transport.writelines(parts)

    def pause_writing(self) -> None:
        """If too many bytes are unsent, close the longest waiting connections."""
        super().pause_writing()
        self._wait_for_reading()
        self._unsent[self] = self._written
        unsent = sum(self._unsent.values())
        for other, size in list(self._unsent.items())[:-1]:
            if unsent <= self.settings.max_unsent_bytes:
                break
            unsent -= size
            other.give_up()

    def _wait_for_reading(self, unread: float = math.inf) -> None:
        _stop(self._unread)
        left = self.transport.get_write_buffer_size()
        if left > max(0, unread - LEAST_READ):
            self.give_up()
        elif left:
            self._unread = self.loop.call_later(WRITE_S, self._wait_for_reading, left)

    def give_up(self) -> None:
        self._unsent.pop(self, None)
        self._given_up.add(self)
        if (connection := self.transport.get_extra_info("socket")) is not None:  # a reset frees the kernel's bytes
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
        self._count("unread")

    def resume_writing(self) -> None:
        """A closing connection keeps its clock: its client must read all."""
        self._unsent.pop(self, None)
        if not self._ending:
            _stop(self._unread)
        super().resume_writing()
        if self._is_unsent:
            self._is_unsent = False
            self.on_response_complete()

    def _now_idle(self) -> None:
        self._idle.pop(self, None)  # so it comes last
        self._idle[self] = self.loop.time()

    def _idle_for_long(self, seconds: float) -> "Iterator[BoundedProtocol]":
        before = self.loop.time() - seconds
        for idle, since in self._idle.items():
            if since > before:
                return
            yield idle

    def _takes_a_place(self) -> bool:
        return self._end(idle for idle in self._idle_for_long(IDLE_S) if not idle.transport.get_write_buffer_size())

    def _make_room(self) -> bool:
        """End a connection. A complete request waits less, or clients without bodies could hold all places."""
        candidates = self._idle_for_long(IDLE_S if self.running.more_body else STALL_S)
        return self._end(idle for idle in candidates if idle.cycle and not idle.cycle.response_complete)

    def _end(self, candidates: "Iterator[BoundedProtocol]") -> bool:
        gives_way = next(candidates, None)
        if gives_way is None:
            return False
        del self._idle[gives_way]
        gives_way.transport.abort()
        self._count("idle")
        return True

    def timeout_keep_alive_handler(self) -> None:
        self.close_gently()

    def on_message_begin(self) -> None:
        """A connection counts as idle until its request is complete, or incomplete requests could take all places."""
        if self in self._idle:
            self._now_idle()
        self._unset_keepalive_if_required()
        super().on_message_begin()
        self._in_head, self._is_between, self._head_bytes, self._fields = True, False, 0, 0
        self._start_clock(HEAD_S)

    def on_url(self, url: bytes) -> None:
        self._count_field(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        self._count_field(len(name) + len(value))
        if self._in_head:
            super().on_header(name, value)

    def _count_field(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES or self._fields > MAX_FIELDS:
            self._break_off(431, _TOO_LARGE)

    def _break_off(self, status: int, message: str) -> NoReturn:
        """Note the answer: httptools replaces the error by its own."""
        self._refusal = (status, message)
        raise ValueError(message)

    def on_headers_complete(self) -> None:
        self._in_head, self._stalled = False, 0
        _stop(self._clock)
        if not self.parser.should_upgrade():
            hosts = self._left = self._chunks = self._chunked = 0
            for name, value in self.headers:
                hosts += name == b"host"
                if name == b"content-length":
                    self._left = int(value)
            if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):  # RFC 9112, section 3.2
                self._break_off(400, f"the request has {hosts} Host headers; send one")
            self.scope["kdc_given_up"] = self._given_up  # type: ignore[typeddict-unknown-key]
            self.scope["kdc_make_room"] = self._make_room  # type: ignore[typeddict-unknown-key]
            super().on_headers_complete()
            self.cycle.transport = _Transport(self)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        self._stalled = 0
        if self in self._idle:
            self._now_idle()
        if self._left:
            self._left -= len(body)
        else:
            self._chunks, self._chunked = self._chunks + 1, self._chunked + len(body)
            if self._chunks > _MOST_TINY + self._chunked // _CHUNK:
                self._break_off(400, f"over {_MOST_TINY} chunks have fewer than {_CHUNK} bytes; send larger ones")
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stalled = 0
        if self.parser.should_upgrade():
            return
        self.cycle.more_body = False
        super().on_message_complete()
        self._idle.pop(self, None)
        if self.cycle.response_complete:  # the clock was for the body's rest
            _stop(self._clock)
            self._now_idle()
            self._forget_request()

    def on_response_complete(self) -> None:
        _forget_body(self.running)
        if self._ending:
            self.server_state.total_requests += 1
            return
        if self.flow.write_paused:
            self._is_unsent = True
            self._hold()
            return
        self.flow.held = False
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self.pipeline:
            self._hold()
            return
        if self._in_head and not self._deaf:  # `_hold` stopped its clock
            self._start_clock(HEAD_S)
        if self.timeout_keep_alive_task is not None:  # no complete request waits
            self._now_idle()
        self._parse(self._received)
        if self.cycle is None or not self.cycle.response_complete:
            return
        if not self.cycle.more_body:
            self._forget_request()
        elif self._left:
            self._start_clock(LINGER_S)
        else:  # chunks take long to parse
            self.close_gently()

    def _forget_request(self) -> None:
        """Free the request. Thousands of idle connections may stay."""
        self._is_between = True
        self.cycle = self.running = self.scope = None  # type: ignore[assignment]
        self.headers = None  # type: ignore[assignment]

    def close_gently(self) -> None:
        """Close after the last answer, and drop input for a while. The kernel would reset a connection with unread
        input, and lose the answer."""
        if self.transport.is_closing():
            return
        self._ending = True
        self._idle.pop(self, None)
        self._received = b""
        self._wait_for_reading()
        is_whole = self.cycle is not None and not self.cycle.more_body and not self._in_head
        if is_whole or self._is_between:
            _stop(self._clock)
            self.transport.close()
            return
        self._start_clock(LINGER_S)
        self._now_idle()
        self.flow.held = False
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _refuse(self, status: int, message: str) -> None:
        self._linger = _LINGER_REFUSED
        newest = self.cycle
        if newest is None or newest.response_complete:
            self._write(status, message, {})
        elif newest.more_body:  # this body is invalid
            newest.disconnected = True  # stops its app's writes
            newest.message_event.set()
            if newest is self.running and not newest.response_started:
                self._write(status, message, {})
        else:
            newest.keep_alive = False
            self._deaf = True
            _stop(self._clock)
            return
        self.close_gently()

    def _write(self, status: int, message: str, headers: dict[str, str]) -> None:
        response = error_response(status, message, {"Connection": "close", **headers})
        lines = b"".join(b"%s: %s\r\n" % header for header in response.raw_headers)
        self.transport.write(STATUS_LINE[status] + lines + b"\r\n" + bytes(response.body))

    def _start_clock(self, seconds: float) -> None:
        _stop(self._clock)
        self._clock = self.loop.call_later(seconds, self.transport.abort)

    def _count(self, ended: Ended | None = None) -> None:
        if self.metrics is not None:
            self.metrics.connected(len(self.connections), ended)


def _stop(clock: asyncio.TimerHandle | None) -> None:
    if clock is not None:
        clock.cancel()


def _forget_body(cycle: Any) -> None:
    """Free the body. The request's reference cycle may stay for minutes."""
    if cycle is not None:
        cycle.body = type(cycle.body)()
