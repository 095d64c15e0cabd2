"""JSON in and out, by orjson: strict and fast."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response


class JsonResponse(Response):
    """A response of JSON. Floats get as many digits as they need to be read back the same."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The response's body."""
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def loads(body: bytes) -> Any:
    """Decode JSON.

    Raises:
        ValueError: it is not JSON, not UTF-8, or nested too deep.
    """
    return orjson.loads(body)
