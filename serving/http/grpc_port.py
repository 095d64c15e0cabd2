"""gRPC on its own port: each call becomes an ASGI request. Needs grpcio, an extra."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Collection
from typing import Any

import grpc
import orjson
from starlette.types import ASGIApp, Message

from kdc.common.errors import InputError
from kdc.serving.http.accepting import most_grpc_connections
from kdc.serving.http.settings import ServeSettings

_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_TRAILING = ("x-artifact", "retry-after")  # reply headers in trailing metadata
_READ_S, _HURRIED_S = 2.0, 0.1  # for a message; the latter if `_reading` is full
_END_S = 0.5  # for the last calls
_SPARE_CALLS = 128  # above `max_requests`: the gate refuses and counts them
_METADATA = 16 * 1024  # bytes of a call
# A reply is small if 2,048 of its size fit into the limit of unread bytes. By default clients have at most 1,024 calls.
_SMALL_REPLIES = 2048
_TOO_MUCH_UNREAD = b'{"error": "clients leave too many bytes of replies unread; try again in 1 s, or send fewer texts"}'


@contextlib.asynccontextmanager
async def grpc_port(app: ASGIApp, methods: Collection[str], settings: ServeSettings) -> AsyncIterator[None]:
    """`app` answers POST at `methods` with a message or an error of `replies`. Other calls are UNIMPLEMENTED."""
    assert settings.grpc_address is not None
    server = grpc.aio.server(
        handlers=(_Calls(app, methods, settings),),
        options=list(_options(settings).items()),
        maximum_concurrent_rpcs=settings.max_requests + _SPARE_CALLS,
    )
    try:
        server.add_insecure_port(settings.grpc_address)
    except RuntimeError:  # its text names no reason
        remedy = "set KDC_GRPC_ADDRESS to an address of this machine with a free port, such as 127.0.0.1:9000"
        raise InputError("cannot listen for gRPC there", given=settings.grpc_address, remedy=remedy) from None
    await server.start()
    try:
        yield
    finally:
        await server.stop(_END_S)


def _options(settings: ServeSettings) -> dict[str, int]:
    return {
        "grpc.so_reuseport": int(settings.workers > 1),
        "grpc.max_allowed_incoming_connections": most_grpc_connections(settings),
        "grpc.max_receive_message_length": settings.max_body_bytes,
        # Kilobytes of a compressed message may unpack to gigabytes.
        "grpc.compression_enabled_algorithms_bitset": 1,  # none but "not compressed"
        "grpc.per_message_decompression": 0,
        "grpc.max_connection_age_ms": 60_000,  # the client reconnects, maybe elsewhere
        "grpc.max_connection_age_grace_ms": round(1000 * settings.timeout_s),
        "grpc.max_connection_idle_ms": round(1000 * settings.keep_alive_s),
        "grpc.server_handshake_timeout_ms": round(1000 * settings.timeout_s),
        "grpc.max_concurrent_streams": 16,
        # With it, grpc 1.85 also counts ending calls.
        "grpc.http.overload_protection": 0,
        "grpc.max_metadata_size": _METADATA,
        "grpc.absolute_max_metadata_size": _METADATA,
        "grpc.http2.lookahead_bytes": 64 * 1024,  # unread bytes of a client
        "grpc.http2.bdp_probe": 0,  # it would widen the window
    }


class _Calls(grpc.GenericRpcHandler):
    """A call is a stream of one message: grpc reads it only on request, so calls without a token are refused unread."""

    def __init__(self, app: ASGIApp, methods: Collection[str], settings: ServeSettings) -> None:
        self._app, self._methods = app, methods
        # A message is in memory before the gate counts it.
        self._reading = asyncio.Semaphore(max(1, settings.max_bodies_bytes // settings.max_body_bytes))
        self._most_unsent, self._unsent = settings.max_unsent_bytes, 0  # bytes of unread replies

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method not in self._methods:
            return None
        return grpc.stream_unary_rpc_method_handler(functools.partial(self._answer, handler_call_details.method))

    async def _answer(self, method: str, messages: AsyncIterator[bytes], context: Any) -> bytes:
        status, headers, body = 500, {}, b""
        unread = True

        async def receive() -> Message:
            nonlocal unread
            if not unread:
                await asyncio.Event().wait()  # cancelled when the client leaves
            unread = False
            async with self._reading:
                seconds = _HURRIED_S if self._reading.locked() else _READ_S
                async with asyncio.timeout(seconds):  # a late message is 504
                    message = await anext(messages, None)
            if message is None:  # too large (grpc has answered), or the client left
                unread = True
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": message}

        async def send(message: Message) -> None:
            nonlocal status, headers, body
            if message["type"] == "http.response.start":
                status, headers = message["status"], dict(message["headers"])
            else:
                body += message.get("body", b"")

        await self._app(_scope(method, context.invocation_metadata()), receive, send)
        if status == 200 and not self._keeps(len(body), context):
            status, headers, body = 429, {b"retry-after": b"1"}, _TOO_MUCH_UNREAD
        trailing = ((name, headers.get(name.encode())) for name in _TRAILING)
        context.set_trailing_metadata(tuple((name, value.decode()) for name, value in trailing if value is not None))
        if status != 200:
            code = _CODES.get(status, grpc.StatusCode.INVALID_ARGUMENT if status < 424 else grpc.StatusCode.INTERNAL)
            context.set_code(code)  # `abort`'s exception would keep the call in memory
            context.set_details(orjson.loads(body)["error"] if body else "")
        return body

    def _keeps(self, size: int, context: Any) -> bool:
        """Count a reply until it is read. False: too much is unread. Large replies get half of the limit."""
        most = self._most_unsent if size <= self._most_unsent // _SMALL_REPLIES else self._most_unsent // 2
        if self._unsent and self._unsent + size > most:
            return False
        self._unsent += size

        def sent(_: Any) -> None:
            self._unsent -= size

        context.add_done_callback(sent)
        return True


def _scope(method: str, metadata: Any) -> dict[str, Any]:
    pairs = ((name, value.encode() if isinstance(value, str) else value) for name, value in metadata or ())
    return {
        "type": "http",
        "method": "POST",
        "path": method,
        "query_string": b"",
        "headers": [(name.lower().encode(), value) for name, value in pairs],
    }
