"""HTTP/1.1 for the workers: uvicorn's, with limits on a request's head, in bytes and in seconds, and errors in JSON.

uvicorn has neither limit, and our app sees a request only after its head: one connection could send headers without
end, and thousands could keep their sockets open by sending nothing.
"""

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from kdc.serving.http.api.replies import error_response

MAX_HEAD_BYTES = 64 * 1024
HEAD_S = 10.0  # seconds from a connection's start to the end of its first head


class BoundedProtocol(HttpToolsProtocol):
    """One connection.

    Attributes:
        front: wraps the server's app, outside of all its middleware; None leaves the app as it is.
    """

    front: ClassVar[Callable[[ASGIApp], ASGIApp] | None] = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if BoundedProtocol.front is not None:
            self.app = BoundedProtocol.front(self.app)
        self._in_head = True
        self._head_bytes = 0
        self._ended = False  # whether a request ended in the chunk at hand

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer of the connection's first head."""
        super().connection_made(transport)
        self._slow: asyncio.TimerHandle = self.loop.call_later(HEAD_S, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._slow.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a head, and refuse a head that is too large."""
        self._ended = False
        super().data_received(data)
        if not self._in_head or self._ended:  # a chunk in which a body ended is not counted; asyncio bounds its size
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(431, f"the headers are too large; at most {MAX_HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        """Stop counting and timing: the head is complete."""
        self._in_head = False
        self._slow.cancel()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Begin to count again: the next bytes are a head."""
        super().on_message_complete()
        self._in_head, self._head_bytes, self._ended = True, 0, True

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP."""
        self._refuse(400, "this is not a valid HTTP request")

    def _refuse(self, status: int, message: str) -> None:
        response = error_response(status, message, {"Connection": "close"})
        head = b"".join(b"%s: %s\r\n" % header for header in response.raw_headers)
        self.transport.write(STATUS_LINE[status] + head + b"\r\n" + bytes(response.body))
        self.transport.close()
