"""Spans of requests, by OpenTelemetry. Imported only where traces are wanted (`kdc.serving.http.tracing`).

    POST /predict           the request; child of the caller's span, where there is a `traceparent`
      tokenise              of all its rows
      queue, session        a pair for each forward pass that had rows of it

A request's rows may be spread over passes, and a pass has rows of many requests: each request gets a session span of
its own for the pass, and `kdc.batch.id` is the same in all of them. No span holds a text, a token, a path or a header;
of `traceparent` the ids are kept, and `tracestate`, which may say anything, is not read.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from kdc import __version__

if TYPE_CHECKING:
    from kdc.serving.http.batcher import BatchReport
    from kdc.serving.http.queue import Request, Row

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})  # clients may send any word
_W3C = TraceContextTextMapPropagator()


class Trace:
    """One request that is sampled.

    Args:
        tracer: makes its spans.
        span: the request's.
        method: of the request.
    """

    __slots__ = ("_inside", "_method", "_span", "_tracer")

    def __init__(self, tracer: Tracer, span: Span, method: str) -> None:
        self._tracer = tracer
        self._span = span
        self._method = method
        self._inside = set_span_in_context(span, Context())

    def asked(self, model: str, rows: int) -> None:
        """It is understood, and for this model."""
        self._span.set_attributes({"kdc.model": model, "kdc.rows": rows})

    def tokenised(self, began: float, tokens: int, truncated: int) -> None:
        """Its rows are token ids.

        Args:
            began: seconds, of `time.perf_counter`.
            tokens: of all rows, after the cut.
            truncated: rows that were cut.
        """
        counts = {"kdc.tokens": tokens, "kdc.truncated_rows": truncated}
        self._span.set_attributes(counts)
        offset = _offset_ns()
        span = self._tracer.start_span("tokenise", self._inside, attributes=counts, start_time=_at(began, offset))
        span.end()

    def passed(self, share: _Share, batch: dict[str, str | int], began: int, ended: int) -> None:
        """One forward pass had rows of it; times are nanoseconds of the epoch."""
        own = {"kdc.rows": share.rows, "kdc.tokens": share.tokens, "kdc.batch.id": batch["kdc.batch.id"]}
        waited = self._tracer.start_span("queue", self._inside, attributes=own, start_time=share.arrived)
        waited.end(began)
        session = self._tracer.start_span("session", self._inside, attributes={**own, **batch}, start_time=began)
        if share.failure is not None:  # its message may hold a text
            session.set_status(StatusCode.ERROR, type(share.failure).__name__)
        session.end(ended)

    def ended(self, route: str, status: int) -> None:
        """It is answered.

        Args:
            route: its name in the metrics; "none" where none was found or the gate refused it.
            status: HTTP status.
        """
        if route != "none":
            self._span.update_name(f"{self._method} {route}")
            self._span.set_attribute("http.route", route)
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500 or status == 424:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


@dataclass(slots=True)
class _Share:
    """What a forward pass had of one request."""

    arrived: int
    rows: int = 0
    tokens: int = 0
    failure: Exception | None = None


class Tracing:
    """Makes spans, and sends them from a thread of its own; what a collector does not take in time is dropped.

    BentoML's own provider of traces stays as it is: this one is not made the process's.

    Args:
        exporters: "otlp", "console".
    """

    def __init__(self, exporters: Sequence[str]) -> None:
        instance = uuid.uuid4().hex
        named = {"service.name": "kdc", "service.version": __version__, "service.instance.id": instance}
        # Merged once more, since `create` would put our names before the person's.
        resource = Resource.create(named).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        for name in exporters:
            self._provider.add_span_processor(BatchSpanProcessor(_exporter(name)))
        self._tracer = self._provider.get_tracer("kdc", __version__)
        self._instance = instance[:8]
        self._numbers = itertools.count(1)

    def begin(self, scope: Scope) -> Trace | None:
        """The request's span.

        Args:
            scope: of HTTP.

        Returns:
            None where it is not sampled.
        """
        parent = next((value for name, value in scope["headers"] if name == b"traceparent"), None)
        context = Context() if parent is None else _W3C.extract({"traceparent": parent.decode("latin-1")}, Context())
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        span = self._tracer.start_span(
            method, context, kind=SpanKind.SERVER, attributes={"http.request.method": method}
        )
        return Trace(self._tracer, span, method) if span.is_recording() else None

    def passed(
        self, model: str, rows: Sequence[Row], results: Sequence[np.ndarray | Exception], report: BatchReport
    ) -> None:
        """One forward pass, told to each request that had rows in it.

        Args:
            model: its name.
            rows: of the batch.
            results: of each row.
            report: of the pass.
        """
        offset = _offset_ns()
        shares: dict[Request, _Share] = {}
        for row, result in zip(rows, results, strict=True):
            if row.request.trace is None:
                continue
            share = shares.setdefault(row.request, _Share(_at(row.arrived, offset)))
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
        began, ended = _at(report.began, offset), _at(report.began + report.seconds, offset)
        for request, share in shares.items():
            if request.trace is not None:
                request.trace.passed(share, batch, began, ended)

    async def close(self) -> None:
        """Send what is left. Whoever has no time to wait may cancel this: the thread ends with the process."""
        thread = threading.Thread(target=self._provider.shutdown, name="kdc-traces", daemon=True)
        thread.start()
        while thread.is_alive():  # not joined: a collector that hangs must not hold up the loop
            await asyncio.sleep(0.005)


def _exporter(name: str) -> SpanExporter:
    if name == "console":
        return ConsoleSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _offset_ns() -> int:
    """From `time.perf_counter` to the epoch. Taken anew each time: the clock of the day is set now and then."""
    return time.time_ns() - time.perf_counter_ns()


def _at(moment: float, offset_ns: int) -> int:
    return round(moment * 1e9) + offset_ns
