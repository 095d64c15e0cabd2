"""Checks requests, except to `ALWAYS_OPEN` and `GET /`, and counts all."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kdc.serving.http.drain import Drain
from kdc.serving.http.metrics import Metrics
from kdc.serving.http.replies import ApiError, error_response, on_unexpected
from kdc.serving.http.settings import ServeSettings

if TYPE_CHECKING:
    from kdc.serving.http.tracing import Tracing

ALWAYS_OPEN = frozenset(
    {"/livez", "/healthz", "/readyz", "/schema.json"}
    | {"/health", "/metrics", "/v2/health/live", "/v2/health/ready", "/playground", "/docs", "/docs.json"}
    | {f"/docs/{name}" for name in ("swagger-ui.css", "swagger-ui-bundle.js", "start.js")}
    | {f"/inference.GRPCInferenceService/{name}" for name in ("ServerLive", "ServerReady")}
    | {"/grpc.health.v1.Health/Check"}
)

# Browsers post these content types across sites without a CORS preflight. `curl -d` and others send the latter two.
_NEVER_JSON, _PERHAPS_JSON = {b"text/plain", b"multipart/form-data"}, {b"application/x-www-form-urlencoded", b""}

_MOST_TURNS = 100  # closing takes one or two
_NO_ANSWER = 499  # nginx's status: the client left


async def wait_for_freed_memory(scope: Scope) -> None:
    """Wait until given-up connections are closed: replies must not pile up in memory."""
    for _ in range(_MOST_TURNS):
        if not scope.get("kdc_given_up"):
            return
        await asyncio.sleep(0)


class Gate:
    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        self._metrics = metrics
        self._settings = settings
        self._token = None if settings.api_key is None else settings.api_key.encode()
        self._inside = 0
        self._bytes = 0
        self._turn = asyncio.Lock()
        self._warm = False
        self._traces: Tracing | None = None
        self._drain = Drain(settings.drain_delay_s, settings.timeout_s + 1, settings.workers)

    def open(self, traces: Tracing | None = None) -> None:
        self._traces = traces
        self._warm = True
        self._drain.install(lambda: self._inside)

    def close(self) -> None:
        self._warm = False

    def is_ready(self) -> bool:
        return self._warm and not self._drain.draining

    @contextlib.asynccontextmanager
    async def turn(self, is_large: bool) -> AsyncIterator[None]:
        """Give each piece of a large request a loop turn of its own."""
        if not is_large:
            yield
            return
        async with self._turn:
            yield
            await asyncio.sleep(0)

    def hold(self, scope: Scope, size: int, *, leave: int = 0) -> None:
        """Count bytes until the request ends. `leave` more bytes must stay free."""
        if self._bytes + size + leave > self._settings.max_bodies_bytes:
            raise ApiError(
                429,
                "the bodies and replies of all requests are too large together; try again in 1 s",
                {"Retry-After": "1"},
            )
        self._bytes += size
        scope["kdc_bytes"] = scope.get("kdc_bytes", 0) + size

    def around(self, app: ASGIApp) -> ASGIApp:
        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            began = time.perf_counter()

            async def send_noting_status(message: Message) -> None:
                if message["type"] == "http.response.start":
                    scope["kdc_status"] = message["status"]
                await send(message)

            try:
                await wait_for_freed_memory(scope)
                await self._pass(app, scope, receive, send_noting_status)
            except ApiError as refusal:
                response = error_response(refusal.status, refusal.message, refusal.headers, path=scope["path"])
                await response(scope, receive, send_noting_status)
            except Exception as error:  # noqa: BLE001 - the server around would log the message, which may hold a text
                if "kdc_status" not in scope:
                    await on_unexpected(error, scope["path"])(scope, receive, send_noting_status)
            finally:
                route, status = scope.get("kdc_route", "none"), scope.get("kdc_status", _NO_ANSWER)
                self._metrics.answered(route, status, time.perf_counter() - began)
                if self._traces is not None and (trace := scope.get("kdc_trace")) is not None:
                    trace.ended(route, status)

        return guarded

    async def _pass(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in ALWAYS_OPEN or (scope["path"] == "/" and scope["method"] in ("GET", "HEAD")):
            await app(scope, receive, send)
            return
        if self._traces is not None:
            scope["kdc_trace"] = self._traces.begin(scope)
        self._check(scope)
        self._inside += 1
        try:
            async with asyncio.timeout(self._settings.timeout_s) as scope["kdc_deadline"]:
                await app(scope, receive, send)
        except TimeoutError:
            if "kdc_status" not in scope:
                late = f"no answer within {self._settings.timeout_s:g} s"
                raise ApiError(504, late, {"Connection": "close"}) from None
        finally:
            self._inside -= 1
            self._bytes -= scope.get("kdc_bytes", 0)

    def _check(self, scope: Scope) -> None:
        if not self.is_ready():
            raise ApiError(503, "the service is starting or draining", {"Connection": "close"})
        if not self._is_allowed(scope):
            raise ApiError(401, "the bearer token is missing or wrong", {"WWW-Authenticate": "Bearer"})
        if scope["method"] == "POST" and _may_be_cross_site(scope):
            raise ApiError(415, "browsers may send this across sites; send Content-Type: application/json")
        if not self._has_room(scope):
            raise ApiError(429, f"{self._inside} concurrent requests; try again in 1 s", {"Retry-After": "1"})

    def _has_room(self, scope: Scope) -> bool:
        """If full, a stalled request gives way."""
        if self._inside < self._settings.max_requests:
            return True
        make_room: Callable[[], bool] | None = scope.get("kdc_make_room")
        return make_room is not None and make_room()

    def _is_allowed(self, scope: Scope) -> bool:
        if self._token is None:
            return True
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, token = header.partition(b" ")
        return hmac.compare_digest(token.strip(), self._token) and scheme.lower() == b"bearer"


def _may_be_cross_site(scope: Scope) -> bool:
    """Whether another site's page may have sent it. Browsers add `Origin`."""
    headers = dict(scope["headers"])
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return kind in _NEVER_JSON or (kind in _PERHAPS_JSON and b"origin" in headers)
