"""Makes the spans of requests and sends them. Imports OpenTelemetry, so it is imported only where traces are wanted.

`kdc.serving.http.trace_settings` decides that; `kdc.serving.http.spans` describes the spans.
"""

import asyncio
import itertools
import threading
import uuid
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from kdc.common.version import __version__
from kdc.serving.http.queue import BatchReport, Result, Row
from kdc.serving.http.spans import Share, Trace, epoch_ns, offset_ns

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})  # clients may send any word
_W3C = TraceContextTextMapPropagator()


class Tracing:
    """Makes the spans of requests and sends them from a thread of its own. What a collector is too slow for is dropped.

    It does not touch the process's global tracer provider, which is BentoML's. Exporters are "otlp" and "console".
    """

    def __init__(self, exporters: Sequence[str]) -> None:
        instance = uuid.uuid4().hex
        named = {"service.name": "kdc", "service.version": __version__, "service.instance.id": instance}
        # Merged once more, since `create` would put our names before those in the environment.
        resource = Resource.create(named).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        for name in exporters:
            self._provider.add_span_processor(BatchSpanProcessor(_exporter(name)))
        self._tracer = self._provider.get_tracer("kdc", __version__)
        self._instance = instance[:8]
        self._numbers = itertools.count(1)

    def begin(self, scope: Scope) -> Trace | None:
        """Begin the span of an HTTP request; None if the request is not sampled."""
        parent = next((value for name, value in scope["headers"] if name == b"traceparent"), None)
        context = Context() if parent is None else _W3C.extract({"traceparent": parent.decode("latin-1")}, Context())
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        span = self._tracer.start_span(
            method, context, kind=SpanKind.SERVER, attributes={"http.request.method": method}
        )
        return Trace(self._tracer, span, method) if span.is_recording() else None

    def passed(self, model: str, rows: Sequence[Row], results: Sequence[Result], report: BatchReport) -> None:
        """Record one forward pass at each traced request that had rows in it; `results` are outputs or errors."""
        offset = offset_ns()
        shares: dict[Trace, Share] = {}
        for row, result in zip(rows, results, strict=True):
            if row.request.trace is None:
                continue
            share = shares.setdefault(row.request.trace, Share(epoch_ns(row.arrived, offset)))
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
        began, ended = epoch_ns(report.began, offset), epoch_ns(report.began + report.seconds, offset)
        for trace, share in shares.items():
            trace.passed(share, batch, began, ended)

    async def close(self) -> None:
        """Send the spans that are left. A caller without time may cancel this: the thread ends with the process."""
        thread = threading.Thread(target=self._provider.shutdown, name="kdc-traces", daemon=True)
        thread.start()
        while thread.is_alive():  # polled, not joined: a collector that hangs must not hold up the loop
            await asyncio.sleep(0.005)


def _exporter(name: str) -> SpanExporter:
    if name == "console":
        return ConsoleSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
