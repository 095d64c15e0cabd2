"""Reads a request's body: bounded, of the right type, decoded; and notices a client that leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request

from kdc.serving.http.api.codec import loads
from kdc.serving.http.api.errors import ApiError


async def read_bytes(request: Request) -> bytes:
    """Read the whole body.

    Raises:
        ApiError: 413 if it is larger than the limit, 415 if it is compressed, 429 if all bodies in work together are
            too large.
        ClientDisconnect: the client left before the body's end.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "the body is compressed; send it without Content-Encoding")
    most = request.app.state.settings.max_body_bytes
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > most:
        raise _too_large(most)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise _too_large(most)
        request.app.state.gate.hold(request.scope, len(part))
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def read_json(request: Request) -> Any:
    """Read the body as JSON.

    Raises:
        ApiError: 415 if it has another type, 400 if it is empty or not JSON; also as `read_bytes`.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind not in ("application/json", "application/x-www-form-urlencoded", ""):  # the latter is what `curl -d` sends
        raise ApiError(415, "the body is not application/json; send Content-Type: application/json")
    body = await read_bytes(request)
    if not body.strip():
        raise ApiError(400, 'the body is empty; send {"inputs": "a text"}')
    try:
        return loads(body)
    except ValueError:
        raise ApiError(400, "the body is not valid JSON in UTF-8") from None


@contextlib.contextmanager
def cancelled_when_gone(request: Request, after_s: float = 0.05) -> Iterator[None]:
    """Cancel the code inside when the client closes its connection.

    Args:
        request: its body was read.
        after_s: only answers that take longer are watched. Most do not, and watching costs a task.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    watchers: list[asyncio.Task[None]] = []

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        if task is not None:
            task.cancel()

    timer = loop.call_later(after_s, lambda: watchers.append(loop.create_task(watch())))
    try:
        yield
    finally:
        timer.cancel()
        for watcher in watchers:
            watcher.cancel()


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is too large; at most {most} bytes", {"Connection": "close"})
