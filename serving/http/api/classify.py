"""`POST /classify`: what BentoML's own clients call, `client.classify(texts=[...])`; the plainest of the dialects."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kdc.serving.http.api.body import read_json
from kdc.serving.http.api.codec import JsonResponse
from kdc.serving.http.api.errors import ApiError
from kdc.serving.http.api.tei import ask, labelled, read_batch
from kdc.serving.http.model import Model

_KEYS = ("texts", "model")


async def classify(request: Request) -> Response:
    """All labels of each text, best first: `[[{"label", "score"}, ...], ...]`."""
    body = await read_json(request)
    if not isinstance(body, dict) or not isinstance(body.get("texts"), list) or set(body) - set(_KEYS):
        raise ApiError(422, 'the body is not {"texts": [...]}, with "model" at most')
    settings = request.app.state.settings
    model = _model(request, body.get("model"))
    rows = read_batch(body["texts"], settings, "texts")
    answer = await ask(request, model, rows, truncate=settings.auto_truncate, side=None)
    request.app.state.metrics.predicted(model, answer)
    return JsonResponse([labelled(model.engine, row) for row in model.engine.activated(answer.logits)])


def _model(request: Request, name: Any) -> Model:
    registry = request.app.state.registry
    if name is None:
        return registry.first
    if not isinstance(name, str) or name not in registry.models:
        raise ApiError(404, f"there is no such model; it serves: {', '.join(registry.models)}")
    return registry.models[name]
