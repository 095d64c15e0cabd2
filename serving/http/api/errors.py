"""Errors over HTTP: one JSON object everywhere, `{"error": what, value and remedy, "error_type": kind}`."""

from __future__ import annotations

import logging

from starlette.requests import Request
from starlette.responses import Response

from kdc.common.errors import KdcError
from kdc.serving.http.api.codec import JsonResponse
from kdc.serving.http.refusals import Closed, Overloaded, TooLarge

log = logging.getLogger("kdc.serve")

# status: its `error_type`, in the words of text-embeddings-inference where it has one
TYPES = {
    400: "Malformed",
    401: "Unauthorized",
    404: "NotFound",
    405: "MethodNotAllowed",
    413: "TooLarge",
    415: "UnsupportedMediaType",
    422: "Validation",
    424: "Inference",
    429: "Overloaded",
    431: "TooLarge",
    500: "Internal",
    503: "Unavailable",
    504: "Timeout",
}


class ApiError(Exception):
    """What a client is told.

    Attributes:
        status: HTTP status, one of `TYPES`.
        message: what was wrong, the value, the remedy; never the text of a request.
        headers: such as Retry-After.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> JsonResponse:
    """The JSON object."""
    return JsonResponse({"error": message, "error_type": TYPES[status]}, status_code=status, headers=headers)


async def on_api_error(_: Request, error: Exception) -> Response:
    """Handler of `ApiError`."""
    assert isinstance(error, ApiError)
    return error_response(error.status, error.message, error.headers)


async def on_overloaded(_: Request, error: Exception) -> Response:
    """Handler of `Overloaded`: 429 with Retry-After."""
    assert isinstance(error, Overloaded)
    return error_response(429, _flat(error), {"Retry-After": str(error.retry_after)})


async def on_too_large(_: Request, error: Exception) -> Response:
    """Handler of `TooLarge`: 422."""
    assert isinstance(error, TooLarge)
    return error_response(422, _flat(error))


async def on_closed(_: Request, error: Exception) -> Response:
    """Handler of `Closed`: 503."""
    assert isinstance(error, Closed)
    return error_response(503, _flat(error), {"Connection": "close"})


async def on_kdc_error(_: Request, error: Exception) -> Response:
    """Handler of `KdcError` out of the engine: 424."""
    assert isinstance(error, KdcError)
    log.error("inference failed: %s", error.what)
    return error_response(424, _flat(error))


def on_unexpected(error: Exception) -> Response:
    """Everything else: 500; the kind of error and its place in the log, no message: it may hold a request's text."""
    log.error("unexpected %s in %s", type(error).__name__, _place(error))
    return error_response(500, "the service failed on this request; the log names the place")


async def not_found(_: Request, __: Exception) -> Response:
    """404 for routes that do not exist. The path is not repeated: it is the client's."""
    return error_response(404, "there is no such route; /docs lists them")


async def method_not_allowed(_: Request, error: Exception) -> Response:
    """405, with the methods that the route has."""
    headers = getattr(error, "headers", None) or {}
    return error_response(405, f"this route takes {headers.get('Allow', 'another method')}", dict(headers))


def _flat(error: KdcError) -> str:
    parts = [error.what, f"given: {error.given}" if error.given else "", error.remedy or ""]
    return "; ".join(part for part in parts if part)


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "an unknown place"
