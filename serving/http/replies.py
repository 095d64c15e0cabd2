"""Replies in JSON. An error is `{"error": message, "error_type": kind}`. Under `/v1/` `error` is OpenAI's object with a
`message`, and System One's errors are TypeSafe's `detail`."""

import asyncio
import logging
import traceback
from collections.abc import Callable
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from kdc.common.errors import InputError, KdcError
from kdc.serving.http.queue import Closed, Overloaded

log = logging.getLogger("kdc.serve")

# `error_type`, in text-embeddings-inference's words if it has one, and meaning.
ERRORS = {
    400: ("Malformed", "Empty or malformed JSON, a binary body that does not fit its header, or an empty text."),
    401: ("Unauthorized", "The bearer token is missing or wrong."),
    404: ("NotFound", "No such model, version or route."),
    405: ("MethodNotAllowed", "The route takes another method."),
    413: ("TooLarge", "The body or the reply is too large."),
    415: ("UnsupportedMediaType", "The route does not take the body's media type."),
    422: ("Validation", "Wrong input for the task, too many texts, or too long a text."),
    424: ("Inference", "The model failed on these texts."),
    429: ("Overloaded", "Overloaded: try again after the seconds in Retry-After."),
    431: ("TooLarge", "The headers are too large."),
    500: ("Internal", "The service failed; see its log."),
    502: ("Upstream", "The upstream failed, or refused the service's key."),
    503: ("Unavailable", "Starting or draining: send it to another instance."),
    504: ("Timeout", "No answer within the time limit."),
}
# TypeSafe's API answers 422, and OpenAI's 400, to whatever is wrong with a body.
SYSTEM_ONE, DECISIONS = "/v1/systemone", "/v1/decisions"
_STATUSES = {SYSTEM_ONE: {400: 422}, DECISIONS: {422: 400}}
_TYPESAFE = {401: "authentication_error", 404: "not_found", 429: "rate_limit_error"}  # TypeSafe's `error_type`
Steps = tuple[str | int, ...]
EMPTY = "Empty"  # `error_type` of a blank text
# Keys of a request's scope.
ARTIFACT, ABSTAINED = "kdc_artifact", "kdc_abstained"
_AT_ONCE = 1024  # numbers written in a millisecond


class JsonResponse(Response):
    """Floats keep all digits."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode. Bytes are JSON already."""
        return content if isinstance(content, bytes) else orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


async def written(shape: tuple[int, ...], values: Callable[[slice], list[Any]]) -> bytes:
    """Write a JSON array in pieces, so other requests get turns. `shape`: rows (at least one), numbers in a row."""
    rows, width = shape
    step = max(1, _AT_ONCE // width)
    if rows <= step:
        return orjson.dumps(values(slice(0, rows)))
    pieces: list[bytes | memoryview] = [b"["]
    for start in range(0, rows, step):
        await asyncio.sleep(0)
        pieces += (memoryview(orjson.dumps(values(slice(start, start + step))))[1:-1], b",")
    return b"".join([*pieces[:-1], b"]"])


class ApiError(Exception):
    """An error for the client, without any text of a request. `kind` is the `error_type`, by default from `ERRORS`."""

    def __init__(
        self,
        status: int,
        message: str,
        headers: dict[str, str] | None = None,
        *,
        kind: str | None = None,
        where: Steps = (),
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.headers, self.kind = status, message, headers or {}, kind
        self.where = where  # path to the body's wrong part


def error_response(
    status: int,
    message: str,
    headers: dict[str, str] | None = None,
    kind: str | None = None,
    *,
    path: str = "",
    where: Steps = (),
) -> JsonResponse:
    kind = kind or ERRORS[status][0]
    status = _STATUSES.get(path, {}).get(status, status)
    content: dict[str, Any] = {"error": message, "error_type": kind}
    if path == SYSTEM_ONE:
        of_body = [{"loc": ["body", *where], "msg": message, "type": kind}]
        content = {
            "detail": of_body if status == 422 else {"error_type": _TYPESAFE.get(status, kind), "message": message}
        }
    elif path.startswith("/v1/"):
        param = ".".join(map(str, where)) or None
        content["error"] = {"message": message, "type": kind, "param": param, "code": None}
    return JsonResponse(content, status_code=status, headers=headers)


def tell_artifact(request: Request, response: Response) -> Response:
    if artifact := request.scope.get(ARTIFACT):
        response.headers["x-artifact"] = artifact
    if (abstained := request.scope.get(ABSTAINED)) is not None:
        response.headers["x-abstained-texts"] = str(abstained)
    return response


async def on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    path = request.scope["path"]
    response = error_response(error.status, error.message, error.headers, error.kind, path=path, where=error.where)
    return tell_artifact(request, response)


async def on_kdc_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, KdcError)
    status, headers = 424, None
    if isinstance(error, Overloaded):
        status, headers = 429, {"Retry-After": str(error.retry_after)}
    elif isinstance(error, InputError):
        status = 422
    elif isinstance(error, Closed):
        status, headers = 503, {"Connection": "close"}
    else:
        log.error("inference failed: %s", error.what)
    message = "; ".join(filter(None, [error.what, f"given: {error.given}" if error.given else "", error.remedy]))
    return tell_artifact(request, error_response(status, message, headers, path=request.scope["path"]))


def on_unexpected(error: Exception, path: str = "") -> Response:
    """The log omits the error's message, which may hold a text."""
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    log.error("unexpected %s in %s:%s", type(error).__name__, frame.f_code.co_filename, line)
    return error_response(500, "the service failed on this request; see its log", path=path)


async def on_no_route(request: Request, error: Exception) -> Response:
    """No message repeats the path, which may hold anything."""
    assert isinstance(error, HTTPException)
    message, headers = "there is no such route; /docs lists them", dict(error.headers or {})
    if error.status_code == 405:
        message = f"this route takes {headers.get('Allow', 'another method')}"
    return error_response(error.status_code, message, headers, path=request.scope["path"])
