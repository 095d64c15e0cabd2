from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from kdc.serving.http.replies import ApiError
from kdc.serving.upstream.client import Upstream
from kdc.serving.upstream.reply import Reply, UpstreamFailed

SOURCE = "x-kdc-source"
UPSTREAM = {SOURCE: "upstream"}


def passed(reply: Reply) -> Response:
    return Response(reply.body, reply.status, reply.headers | UPSTREAM)


def error_of(failure: UpstreamFailed) -> ApiError:
    return ApiError(failure.status, failure.message, failure.headers | UPSTREAM)


def target(request: Request) -> str:
    """Path and query, as sent."""
    query = request.scope.get("query_string", b"")
    path: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    return (path.partition(b"?")[0] + (b"?" + query if query else b"")).decode("latin-1")


class Relayed(Response):
    def __init__(self, upstream: Upstream, request: Request, body: bytes) -> None:
        super().__init__()
        self._upstream, self._request, self._body = upstream, request, body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = self._request
        try:
            async with self._upstream.open(request.method, target(request), self._body, request.headers) as opened:
                reply, parts = opened
                scope["kdc_deadline"].reschedule(None)  # a chat may last longer
                await StreamingResponse(parts, reply.status, reply.headers | UPSTREAM)(scope, receive, send)
        except UpstreamFailed as failure:
            raise error_of(failure) from None
