"""The pages `/playground` and `/docs` (Swagger UI, from BentoML). They send no request to other hosts."""

from importlib.util import find_spec
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from kdc.serving.http.replies import ApiError

# Read at the start: answers need no disk.
_PAGES = {path.name: path.read_bytes() for path in (Path(__file__).resolve().parent.parent / "pages").iterdir()}
# Browsers enforce that pages ask only this service.
_PLAYGROUND_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_DOCS_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
_ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "start.js": "text/javascript"}


async def home(_: Request) -> Response:
    """Redirects to the playground."""
    return RedirectResponse("playground", status_code=307)  # relative: a proxy may add a prefix


async def playground(_: Request) -> Response:
    """A page to try the model on."""
    return Response(_PAGES["playground.html"], media_type="text/html; charset=utf-8", headers=_PLAYGROUND_HEADERS)


async def docs(_: Request) -> Response:
    """The OpenAPI document as a page."""
    return Response(_PAGES["docs.html"], media_type="text/html", headers=_DOCS_HEADERS)


async def docs_asset(request: Request) -> Response:
    """Swagger UI's files."""
    name = request.path_params["asset"]
    if name not in _ASSETS:
        raise ApiError(404, "there is no such file")
    if name == "start.js":
        return Response(_PAGES["start.js"], media_type=_ASSETS[name], headers=_DOCS_HEADERS)
    spec = find_spec("bentoml")  # not imported: BentoML is optional here
    roots = (spec.submodule_search_locations if spec else None) or ["."]
    file = Path(roots[0], "_internal", "server", "static_content", name)
    return FileResponse(file, media_type=_ASSETS[name], headers=_DOCS_HEADERS)
