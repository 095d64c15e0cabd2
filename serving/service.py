"""The BentoML service: `kdc serve`, `bentoml serve kdc.serving.service:Classifier`, `bentoml build`, containers.

BentoML brings packaging, workers, lifecycle and clients. Requests reach our app before BentoML's router and body
handling, which would cost more than a small model's forward pass (docs/serving.md has the figures).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

from kdc.common.errors import KdcError
from kdc.serving.http import drain
from kdc.serving.http.settings import from_environment

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")  # a start calls nobody unless the person asks for it

import bentoml
import uvicorn.config
from starlette.types import ASGIApp, Receive, Scope, Send

from kdc.serving.http.api.app import make_app
from kdc.serving.http.protocol import BoundedProtocol
from kdc.serving.http.registry import Registry, verify
from kdc.serving.launch import local

if drain.RUNTIME_DIR in os.environ:  # under `kdc serve`, which tells the same in fewer words
    logging.getLogger("bentoml").setLevel(logging.WARNING)

_SETTINGS = from_environment()
_APP = make_app(_SETTINGS)
# Whose child a worker is. Asked now, which is late where `kdc serve` has not told it: it may be gone already.
_SUPERVISOR = int(os.environ.get(drain.SUPERVISOR) or os.getppid())
# What BentoML answers itself. All else is ours.
_BENTOML = frozenset({"/livez", "/healthz", "/readyz", "/schema.json"})


class FrontDoor:
    """Sends requests to our app, before BentoML's middleware: that takes longer than all that we do but the model."""

    def __init__(self, app: ASGIApp) -> None:
        self._bentoml = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ours = scope["type"] == "http" and scope["path"] not in _BENTOML
        await (_APP if ours else self._bentoml)(scope, receive, send)


@bentoml.service(
    name="kdc",
    workers=_SETTINGS.workers,
    # Its metrics have the raw path as a label, and its access log costs a third of a request.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    # Ours is the limit that answers; BentoML never cancels the timer of its own, so it must not be long.
    traffic={"timeout": _SETTINGS.timeout_s + 1},
    # Spans are ours (serving/spans.py); BentoML's would be second ones of the same requests, without what is inside.
    tracing={"excluded_urls": ".*"},
)
class Classifier:
    """Text classification by an artifact of `kdc compress`."""

    def __init__(self) -> None:
        self._stack = contextlib.AsyncExitStack()

    @bentoml.on_deployment
    @staticmethod
    def before_workers() -> None:
        """Called by BentoML once, before any worker starts: artifacts are fetched, and wrong ones told, once."""
        artifacts = local(_SETTINGS.artifact, allow_failed=_SETTINGS.allow_failed)
        os.environ["KDC_ARTIFACT"] = artifacts  # which workers inherit
        verify(_SETTINGS.model_copy(update={"artifact": artifacts}))

    @bentoml.on_startup
    async def start(self) -> None:
        """Load and warm the artifacts."""
        _log_to_stderr()
        try:
            await self._stack.enter_async_context(_APP.router.lifespan_context(_APP))
        except KdcError as error:
            _report_failure(error)
            raise
        # All that was imported stays: without it, a full collection walks it and halts every request for 40 ms.
        gc.collect()
        gc.freeze()
        _report_started(_APP.state.registry)
        self._orphaned = asyncio.create_task(_end_with_the_supervisor())

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """Answer what is in work."""
        self._orphaned.cancel()
        await self._stack.aclose()

    async def __is_ready__(self) -> bool:
        return bool(_APP.state.gate.is_ready())

    @bentoml.api(route="/classify")
    async def classify(self, texts: list[Any], model: str | None = None) -> list[list[dict[str, Any]]]:
        """Labels and scores of each text or pair of texts, best first.

        Over HTTP, `kdc.serving.http.api.classify` answers this route; this is for other services in the same process.
        """
        from kdc.serving.http.api.tei import labelled, read_batch

        registry: Registry = _APP.state.registry
        chosen = registry.first if model is None else registry.models[model]
        answer = await chosen.answer(read_batch(texts, _SETTINGS, "texts"))
        return [labelled(chosen.engine, row) for row in chosen.engine.activated(answer.logits)]


uvicorn.config.HTTP_PROTOCOLS["auto"] = "kdc.serving.http.protocol:BoundedProtocol"  # BentoML passes none on
BoundedProtocol.front = FrontDoor
service: Any = Classifier  # the decorator makes it a bentoml.Service
service.add_asgi_middleware(FrontDoor)  # for a server with another protocol: the door must never stand open


async def _end_with_the_supervisor() -> None:
    """A killed supervisor would leave its workers behind, with the port in their hands."""
    while os.getppid() == _SUPERVISOR:
        await asyncio.sleep(1)
    logging.getLogger("kdc.serve").error("the supervisor is gone: stopping")
    os.kill(os.getpid(), signal.SIGTERM)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
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
    if folder := os.environ.get(drain.RUNTIME_DIR):
        (Path(folder) / drain.STARTED).touch()


def _report_failure(error: KdcError) -> None:
    """Tell `kdc serve`, so that it stops and says why: BentoML would start the worker again, and again."""
    folder = os.environ.get(drain.RUNTIME_DIR)
    if folder is None or (Path(folder) / drain.STARTED).exists():
        logging.getLogger("kdc.serve").error("cannot start: %s", error)
        return
    problem = {"what": error.what, "given": str(error.given or "") or None, "remedy": error.remedy}
    (Path(folder) / drain.FAILED).write_text(json.dumps({**problem, "exit_code": error.exit_code}), encoding="utf-8")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while os.getppid() == _SUPERVISOR:  # until `kdc serve` ends this process, or is gone
        time.sleep(1)
