"""OpenTelemetry spans of requests. No span holds a text, a token, a path or a header.

`tracestate` may hold anything, so it is not read.
"""

import asyncio
import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from kdc.common.version import __version__
from kdc.serving.http.queue import BatchReport, Result, Row

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})  # clients may send others
_W3C = TraceContextTextMapPropagator()


@dataclass(slots=True)
class _Share:
    arrived: int  # of the first row, in epoch nanoseconds
    rows: int = 0
    tokens: int = 0  # without padding
    failure: Exception | None = None


@dataclass(slots=True, eq=False)
class Trace:
    _tracer: Tracer
    _method: str
    _span: Span  # the request's
    _inside: Context

    def asked(self, model: str, artifact: str, rows: int) -> None:
        self._span.set_attributes({"kdc.model": model, "kdc.artifact": artifact, "kdc.rows": rows})

    def tokenised(self, began: float, tokens: int, truncated: int) -> None:
        """`began` is from `time.perf_counter`; tokens are counted after the cut."""
        counts = {"kdc.tokens": tokens, "kdc.truncated_rows": truncated}
        self._span.set_attributes(counts)
        start = _epoch_ns(began, _zero_ns())
        self._tracer.start_span("tokenise", self._inside, attributes=counts, start_time=start).end()

    def passed(self, share: _Share, batch: dict[str, str | int], began: int, ended: int) -> None:
        """Times are epoch nanoseconds."""
        own = {"kdc.rows": share.rows, "kdc.tokens": share.tokens, "kdc.batch.id": batch["kdc.batch.id"]}
        self._tracer.start_span("queue", self._inside, attributes=own, start_time=share.arrived).end(began)
        session = self._tracer.start_span("session", self._inside, attributes={**own, **batch}, start_time=began)
        if share.failure is not None:  # its message may hold a text
            session.set_status(StatusCode.ERROR, type(share.failure).__name__)
        session.end(ended)

    def ended(self, route: str, status: int) -> None:
        """The route is "none" if none matched or the gate refused it."""
        if route != "none":
            self._span.update_name(f"{self._method} {route}")
            self._span.set_attribute("http.route", route)
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500 or status == 424:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class Tracing:
    """Sends spans from its own thread; drops them if a collector is slow. BentoML's tracer provider stays."""

    def __init__(self, exporters: Iterable[Callable[[], SpanExporter]]) -> None:
        instance = uuid.uuid4().hex
        named = {"service.name": "kdc", "service.version": __version__, "service.instance.id": instance}
        # `create` lets our names win; merging again lets the environment's win.
        resource = Resource.create(named).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        for exporter in exporters:
            self._provider.add_span_processor(BatchSpanProcessor(exporter()))
        self._tracer = self._provider.get_tracer("kdc", __version__)
        self._instance = instance[:8]
        self._numbers = itertools.count(1)

    def begin(self, scope: Scope) -> Trace | None:
        """None if the request is not sampled."""
        parent = next((value for name, value in scope["headers"] if name == b"traceparent"), None)
        context = Context() if parent is None else _W3C.extract({"traceparent": parent.decode("latin-1")}, Context())
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        span = self._tracer.start_span(
            method, context, kind=SpanKind.SERVER, attributes={"http.request.method": method}
        )
        return Trace(self._tracer, method, span, set_span_in_context(span, Context())) if span.is_recording() else None

    def passed(self, model: str, rows: Sequence[Row], results: Sequence[Result], report: BatchReport) -> None:
        zero = _zero_ns()  # read once: the clock may be set
        shares: dict[Trace, _Share] = {}
        for row, result in zip(rows, results, strict=True):
            if isinstance(row.request.trace, Trace):
                share = shares.setdefault(row.request.trace, _Share(_epoch_ns(row.arrived, zero)))
                share.rows += 1
                share.tokens += row.length
                if isinstance(result, Exception):
                    share.failure = result
        if not shares:
            return
        batch: dict[str, str | int] = {
            "kdc.model": model,
            "kdc.batch.id": f"{self._instance}-{next(self._numbers)}",
            "kdc.batch.rows": report.rows,
            "kdc.batch.tokens": report.tokens,
        }
        began, ended = _epoch_ns(report.began, zero), _epoch_ns(report.began + report.seconds, zero)
        for trace, share in shares.items():
            trace.passed(share, batch, began, ended)

    async def close(self) -> None:
        """Send last spans. Cancelling is safe: the thread ends with the process."""
        thread = threading.Thread(target=self._provider.shutdown, name="kdc-traces", daemon=True)
        thread.start()
        while thread.is_alive():  # not joined: a collector may hang
            await asyncio.sleep(0.005)


def _zero_ns() -> int:
    """The zero of `time.perf_counter` in epoch nanoseconds."""
    return time.time_ns() - time.perf_counter_ns()


def _epoch_ns(moment: float, zero: int) -> int:
    return zero + round(moment * 1e9)
