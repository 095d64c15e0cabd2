"""The page for people: `/playground`, one file without outside requests, and `/`, which leads there."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

# Read once, at the start: a worker that answers needs no disk.
_PLAYGROUND = (Path(__file__).resolve().parent.parent / "pages" / "playground.html").read_bytes()
# The browser enforces what the page promises: it talks to this service and to nobody else.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


async def playground(_: Request) -> Response:
    """`GET /playground`: the page."""
    return Response(_PLAYGROUND, media_type="text/html; charset=utf-8", headers=_HEADERS)


async def home(_: Request) -> Response:
    """`GET /`: the way to the page."""
    return RedirectResponse("playground", status_code=307)  # relative: there may be a prefix
