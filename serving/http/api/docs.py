"""`/docs.json` and `/docs`: the description, and Swagger UI to browse it. Works offline: BentoML ships Swagger UI."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from kdc.serving.http.api.codec import JsonResponse
from kdc.serving.http.api.errors import ApiError
from kdc.serving.http.api.openapi import describe

_ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "start.js": "text/javascript"}
_PAGE = """<!doctype html>
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
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
}


@functools.cache
def _description() -> dict[str, object]:
    return describe()


async def description(_: Request) -> Response:
    """`GET /docs.json`."""
    return JsonResponse(_description())


async def page(_: Request) -> Response:
    """`GET /docs`."""
    return Response(_PAGE, media_type="text/html", headers=_HEADERS)


async def asset(request: Request) -> Response:
    """`GET /docs/{asset}`: a part of Swagger UI."""
    name = request.path_params["asset"]
    if name not in _ASSETS:
        raise ApiError(404, "there is no such file")
    if name == "start.js":
        return Response(_START, media_type=_ASSETS[name], headers=_HEADERS)
    return FileResponse(_swagger_ui() / name, media_type=_ASSETS[name], headers=_HEADERS)


@functools.cache
def _swagger_ui() -> Path:
    spec = find_spec("bentoml")  # found, not imported: the app runs without BentoML too
    roots = spec.submodule_search_locations if spec else None
    return Path((roots or ["."])[0]) / "_internal" / "server" / "static_content"
