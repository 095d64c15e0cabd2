"""The pages for people: `/playground`, to try the model, and `/docs`, to browse the API. They ask no other host.

`/docs` is Swagger UI, whose files BentoML ships, on the description at `/docs.json`.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from kdc.serving.http.api.codec import JsonResponse
from kdc.serving.http.api.errors import ApiError
from kdc.serving.http.api.openapi import describe

# Read once, at the start, so that a worker needs no disk to answer.
_PLAYGROUND = (Path(__file__).resolve().parent.parent / "pages" / "playground.html").read_bytes()
# The browser enforces what the pages promise: they talk to this service and to nobody else.
_PLAYGROUND_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_DOCS_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
}
_DOCS = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>kdc: the API</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = 'SwaggerUIBundle({ url: "docs.json", dom_id: "#ui", deepLinking: true });\n'
_ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "start.js": "text/javascript"}


async def home(_: Request) -> Response:
    """`GET /`: leads to the playground."""
    return RedirectResponse("playground", status_code=307)  # relative, since a proxy may put a prefix before it


async def playground(_: Request) -> Response:
    """`GET /playground`."""
    return Response(_PLAYGROUND, media_type="text/html; charset=utf-8", headers=_PLAYGROUND_HEADERS)


async def docs(_: Request) -> Response:
    """`GET /docs`."""
    return Response(_DOCS, media_type="text/html", headers=_DOCS_HEADERS)


async def docs_asset(request: Request) -> Response:
    """`GET /docs/{asset}`: a file of Swagger UI."""
    name = request.path_params["asset"]
    if name not in _ASSETS:
        raise ApiError(404, "there is no such file")
    if name == "start.js":
        return Response(_START, media_type=_ASSETS[name], headers=_DOCS_HEADERS)
    return FileResponse(_swagger_ui() / name, media_type=_ASSETS[name], headers=_DOCS_HEADERS)


async def description(_: Request) -> Response:
    """`GET /docs.json`: the OpenAPI description."""
    return JsonResponse(_description())


@functools.cache
def _description() -> dict[str, object]:
    return describe()


@functools.cache
def _swagger_ui() -> Path:
    spec = find_spec("bentoml")  # only located, not imported: the app runs without BentoML too
    roots = spec.submodule_search_locations if spec else None
    return Path((roots or ["."])[0]) / "_internal" / "server" / "static_content"
