"""The HTTP app, alone or inside BentoML."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Lifespan

from kdc.common.errors import KdcError
from kdc.serving.http import replies
from kdc.serving.http.admin import admin_port
from kdc.serving.http.api import pages
from kdc.serving.http.api.gate import Gate
from kdc.serving.http.api.openapi import Handler
from kdc.serving.http.api.routes import OPERATIONS
from kdc.serving.http.metrics import Metrics
from kdc.serving.http.model import Listeners
from kdc.serving.http.queue import BatchReport, Result, Row
from kdc.serving.http.registry import Registry
from kdc.serving.http.settings import ServeSettings, check_grpc, check_upstream, trace_exporters


def make_app(settings: ServeSettings) -> Starlette:
    check_grpc(settings)
    check_upstream(settings)
    metrics = Metrics()
    gate = Gate(settings, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        traces = None
        if exporters := trace_exporters():
            from kdc.serving.http.tracing import Tracing  # imports OpenTelemetry

            traces = Tracing(exporters.values())

        def record(model: str, rows: Sequence[Row], results: Sequence[Result], report: BatchReport) -> None:
            metrics.observe_batch(model, report)
            if traces is not None:
                traces.passed(model, rows, results, report)

        registry = Registry(settings, Listeners(record, metrics.queue, metrics.reloaded))
        registry.load()
        app.state.registry = registry
        metrics.models = registry.models
        forwarding = None
        if settings.upstream is not None:
            from kdc.serving.http.api.forwarding import opened  # imports an HTTP client

            forwarding = app.state.forwarding = opened(settings, registry.models, metrics)
        gate.open(traces)
        watcher = asyncio.create_task(registry.watch()) if settings.reload_s else None
        try:
            async with contextlib.AsyncExitStack() as ports:
                if (port := settings.admin_port) is not None:
                    shared = settings.workers > 1
                    ports.enter_context(admin_port(port, is_ready=gate.is_ready, metrics=metrics, shared=shared))
                if settings.grpc_address is not None:
                    await ports.enter_async_context(_grpc(app))
                yield
        finally:
            gate.close()
            if watcher is not None:
                watcher.cancel()
            if forwarding is not None:
                await forwarding.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):  # a longer pass hangs
                    await registry.close()
                    if traces is not None:
                        await traces.close()

    routes = [_route(operation.path, operation.handler, operation.method) for operation in OPERATIONS]
    routes.append(_route("/docs/{asset}", pages.docs_asset, "GET"))
    if settings.upstream is not None:
        routes += [_route("/v1/{rest:path}", _relay, method) for method in ("GET", "POST", "DELETE")]
    app = _guarded(routes, gate, lifespan)
    app.state.settings, app.state.metrics, app.state.gate = settings, metrics, gate
    app.state.forwarding = None
    return app


async def _relay(request: Request) -> Response:
    relayed: Response = await request.app.state.forwarding.relay(request)
    return relayed


def _guarded(routes: list[Route], gate: Gate, lifespan: Lifespan[Starlette] | None = None) -> Starlette:
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={
            replies.ApiError: replies.on_api_error,
            KdcError: replies.on_kdc_error,
            404: replies.on_no_route,
            405: replies.on_no_route,
        },
    )
    app.router.redirect_slashes = False
    app.add_middleware(gate.around)
    return app


@contextlib.asynccontextmanager
async def _grpc(app: Starlette) -> AsyncIterator[None]:
    from kdc.serving.http.api.v2_grpc import METHODS  # from an extra
    from kdc.serving.http.grpc_port import grpc_port

    calls = _guarded([_route(method, handler, "POST") for method, handler in METHODS.items()], app.state.gate)
    calls.state = app.state
    async with grpc_port(calls, METHODS, app.state.settings):
        yield


def _route(path: str, handler: Handler, method: str) -> Route:

    async def endpoint(request: Request) -> Response:
        request.scope["kdc_route"] = path
        try:
            return replies.tell_artifact(request, await handler(request))
        except (asyncio.CancelledError, ClientDisconnect):
            if await request.is_disconnected():
                return Response(status_code=499)
            raise

    return Route(path, endpoint, methods=[method])
