"""`POST /classify`, the plainest dialect, which BentoML's own clients speak: `client.classify(texts=[...])`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from kdc.serving.http.api.asking import ask, model_named
from kdc.serving.http.api.body import read_json
from kdc.serving.http.api.codec import JsonResponse
from kdc.serving.http.api.errors import ApiError
from kdc.serving.http.api.tei import labelled, read_batch
from kdc.serving.http.model import Model

_KEYS = ("texts", "model")


async def classify(request: Request) -> Response:
    """All labels of each row, best first: `[[{"label": ..., "score": ...}, ...], ...]`."""
    body = await read_json(request)
    if not isinstance(body, dict) or not isinstance(body.get("texts"), list) or set(body) - set(_KEYS):
        raise ApiError(422, 'the body is not {"texts": [...]}, with "model" at most')
    settings = request.app.state.settings
    name = body.get("model")
    model: Model = request.app.state.registry.first if name is None else model_named(request, name)
    rows = read_batch(body["texts"], settings, "texts")
    answer = await ask(request, model, rows, truncate=settings.auto_truncate, side=None)
    request.app.state.metrics.predicted(model, answer)
    return JsonResponse([labelled(model.engine, row) for row in model.engine.activated(answer.logits)])
