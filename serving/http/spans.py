"""The spans of one request, by OpenTelemetry. Imported only where traces are wanted (`kdc.serving.http.tracing`).

    POST /predict           the request; child of the caller's span where it sent a `traceparent`
      tokenise              of all its rows
      queue, session        a pair for each forward pass that had rows of it

A request's rows may be spread over several passes, and a pass has rows of several requests. So each request gets its
own session span for a pass, and `kdc.batch.id` is the same in all of them. No span holds a text, a token, a path or a
header. Of `traceparent` only the ids are kept, and `tracestate`, which may hold anything, is not read.
"""

import time
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.trace import Span, StatusCode, Tracer, set_span_in_context


@dataclass(slots=True)
class Share:
    """The part of a forward pass that belonged to one request."""

    arrived: int  # when its first row came, in nanoseconds of the epoch
    rows: int = 0  # its rows in the batch
    tokens: int = 0  # their tokens, without padding
    failure: Exception | None = None  # the error that one of them met, if any


class Trace:
    """The spans of one sampled request. `span`, that of the whole request, was begun already."""

    __slots__ = ("_inside", "_method", "_span", "_tracer")

    def __init__(self, tracer: Tracer, span: Span, method: str) -> None:
        self._tracer = tracer
        self._span = span
        self._method = method
        self._inside = set_span_in_context(span, Context())

    def asked(self, model: str, rows: int) -> None:
        """Record the model that the request asks and its number of rows."""
        self._span.set_attributes({"kdc.model": model, "kdc.rows": rows})

    def tokenised(self, began: float, tokens: int, truncated: int) -> None:
        """Record that its rows were tokenised just now: to so many tokens after the cut, with so many rows cut.

        Tokenising began at `began`, in seconds of `time.perf_counter`.
        """
        counts = {"kdc.tokens": tokens, "kdc.truncated_rows": truncated}
        self._span.set_attributes(counts)
        start = epoch_ns(began, offset_ns())
        self._tracer.start_span("tokenise", self._inside, attributes=counts, start_time=start).end()

    def passed(self, share: Share, batch: dict[str, str | int], began: int, ended: int) -> None:
        """Record a forward pass that had rows of the request, from `began` to `ended` in nanoseconds of the epoch.

        `batch` holds the attributes of the whole batch, `kdc.batch.id` among them.
        """
        own = {"kdc.rows": share.rows, "kdc.tokens": share.tokens, "kdc.batch.id": batch["kdc.batch.id"]}
        queue = self._tracer.start_span("queue", self._inside, attributes=own, start_time=share.arrived)
        queue.end(began)
        session = self._tracer.start_span("session", self._inside, attributes={**own, **batch}, start_time=began)
        if share.failure is not None:  # its message may hold a text
            session.set_status(StatusCode.ERROR, type(share.failure).__name__)
        session.end(ended)

    def ended(self, route: str, status: int) -> None:
        """Record that the request was answered, and end its span.

        The route is "none", as in the metrics, if there was no such route or the gate refused the request.
        """
        if route != "none":
            self._span.update_name(f"{self._method} {route}")
            self._span.set_attribute("http.route", route)
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500 or status == 424:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def offset_ns() -> int:
    """Nanoseconds from `time.perf_counter`'s zero to the epoch. Taken anew each time, since the clock may be set."""
    return time.time_ns() - time.perf_counter_ns()


def epoch_ns(moment: float, offset: int) -> int:
    """A moment of `time.perf_counter`, in seconds, as nanoseconds of the epoch."""
    return round(moment * 1e9) + offset
