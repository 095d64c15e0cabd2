"""The BentoML service, for `kdc serve`, `bentoml serve kdc.serving.service:Classifier` and containers."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
from typing import Any

from kdc.common.errors import KdcError, printable
from kdc.common.memory import share_heaps
from kdc.serving.http import patches, runtime
from kdc.serving.http.settings import resolve

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # no log line per refused call
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or one request takes all cores

import bentoml
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from kdc.serving.http.accepting import Accepting, most_connections
from kdc.serving.http.api.app import make_app
from kdc.serving.http.protocol import BoundedProtocol
from kdc.serving.http.registry import Registry, verify
from kdc.serving.http.replies import JsonResponse

if runtime.directory() is not None:  # `kdc serve` says the same
    logging.getLogger("bentoml").setLevel(logging.WARNING)

_SETTINGS = resolve()
_APP = make_app(_SETTINGS)
# Python's are (700, 10, 10). gRPC's calls leave cycles that hold their messages: 600 MB with 20,000 objects.
_GC_THRESHOLDS = (2000, 10, 40)
# From the environment, because the parent process may have died.
_SUPERVISOR = int(os.environ.get(runtime.SUPERVISOR) or os.getppid())


class FrontDoor:
    """HTTP requests bypass BentoML's middleware: it is slower than a small model, and must not see input."""

    def __init__(self, app: ASGIApp) -> None:
        self._bentoml = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (_APP if scope["type"] == "http" else self._bentoml)(scope, receive, send)


@bentoml.service(
    name="kdc",
    workers=_SETTINGS.workers,
    # BentoML's metrics hold raw paths; its access log is slow.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    # Our timeout fires first. BentoML never cancels its timer, so the timer must be short.
    traffic={"timeout": _SETTINGS.timeout_s + 1},
    # Our own spans say more.
    tracing={"excluded_urls": ".*"},
)
class Classifier:
    """Text classification by an artifact of `kdc compress`."""

    def __init__(self) -> None:
        self._stack = contextlib.AsyncExitStack()

    @bentoml.on_deployment
    @staticmethod
    def before_workers() -> None:
        """`bentoml serve` would restart a worker with a damaged artifact without end."""
        os.environ |= verify(_SETTINGS).environment() | {runtime.SUPERVISOR: str(os.getpid())}

    @bentoml.on_startup
    async def start(self) -> None:
        _log_to_stderr()
        share_heaps()  # before other threads start
        server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)  # uvicorn's server
        if server is not None and _SETTINGS.workers == 1:
            BoundedProtocol.accepting = Accepting(server, most_connections(_SETTINGS))
        try:
            await self._stack.enter_async_context(_APP.router.lifespan_context(_APP))
        except KdcError as error:
            _report_failure(error)
            raise
        # A full collection of the imported modules takes 40 ms.
        gc.collect()
        gc.freeze()
        # HTTP requests leave no cycles. With Python's thresholds, collections took half of a worker's time.
        gc.set_threshold(*_GC_THRESHOLDS)
        _report_started(_APP.state.registry)
        self._orphaned = asyncio.create_task(_end_with_the_supervisor())

    @bentoml.on_shutdown
    async def stop(self) -> None:
        self._orphaned.cancel()
        await self._stack.aclose()

    @bentoml.api(route="/classify")
    async def classify(self, texts: list[Any], model: str | None = None) -> list[list[dict[str, Any]]]:
        """Labels and scores of each text or pair of texts, best first.

        For code in this process; `kdc.serving.http.api.classify` answers HTTP.
        """
        from kdc.serving.http.api import classify, tei

        registry: Registry = _APP.state.registry
        chosen = registry.first if model is None else registry.models[model]
        answer = await chosen.answer(classify.rows_of(texts, _SETTINGS))
        return tei.labelled(chosen.engine, answer.probabilities)


service: Any = Classifier  # a bentoml.Service
_SCHEMA = JsonResponse(service.schema())  # takes two milliseconds, and anyone may ask


async def _schema(request: Request) -> Response:
    """BentoML clients ask for `GET /schema.json` first."""
    request.scope["kdc_route"] = "/schema.json"
    return _SCHEMA


_APP.router.routes.append(Route("/schema.json", _schema))
patches.speak_http_by("kdc.serving.http.protocol:BoundedProtocol")
BoundedProtocol.front, BoundedProtocol.settings, BoundedProtocol.metrics = FrontDoor, _SETTINGS, _APP.state.metrics
service.add_asgi_middleware(FrontDoor)  # for servers with another protocol


async def _end_with_the_supervisor() -> None:
    """A worker without its supervisor would hold the port."""
    while os.getppid() == _SUPERVISOR:
        await asyncio.sleep(1)
    logging.getLogger("kdc.serve").error("the supervisor is gone: stopping")
    os.kill(os.getpid(), signal.SIGTERM)


class _OneLine(logging.Formatter):
    """Artifact names come from outside."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record)).replace("\n", " ")


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("kdc")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def _report_started(registry: Registry) -> None:
    log = logging.getLogger("kdc.serve")
    for name, model in registry.models.items():
        engine = model.engine
        log.info("%s: %s on %s, %d threads, ready", name, engine.variant, engine.provider, engine.threads)
        for note in engine.notes:
            log.warning("%s: %s", name, note)
    if folder := runtime.directory():
        runtime.report_ready(folder)


def _report_failure(error: KdcError) -> None:
    folder = runtime.directory()
    if folder is None or runtime.has_started(folder):
        logging.getLogger("kdc.serve").error("cannot start: %s", error)
        return
    runtime.report_failure(folder, error)
    os._exit(error.exit_code)  # without uvicorn's traceback
