"""`POST /classify`, in three dialects, told apart by the key of the texts.

| key | dialect | reply |
|---|---|---|
| `texts` | BentoML's clients, `classify(texts=[...])` | all labels of each row: [[{"label", "score"}, ...], ...] |
| `input` | vLLM's clients | {"data": [{"index", "label", "probs", "num_classes"}, ...], "usage", ...} |
| `inputs` | text-embeddings-inference's | as of `/predict` |

Under `texts` and `input` a list holds rows, each a text, [text] or [text, text]; `input` may be one text too.
"""

import time
import uuid
from typing import Annotated, Any

import orjson
from pydantic import BeforeValidator
from starlette.requests import Request
from starlette.responses import Response

from kdc.serving.engine.engine import activate
from kdc.serving.http.api import tei
from kdc.serving.http.api.inference import ask, model_named
from kdc.serving.http.api.request_body import Batch, Body, ModelName, checked, in_a_list, read_json, within_limits
from kdc.serving.http.model import Answer, Model
from kdc.serving.http.replies import ApiError, JsonResponse, written


class ClassifyRequest(Body):
    """A body with `texts`."""

    texts: Batch
    model: ModelName = None


class VllmRequest(Body):
    """A body with `input`. The last three say whose request it is, which, and how urgent; they are not used."""

    input: Annotated[Batch, BeforeValidator(in_a_list, str | Batch)]
    model: ModelName = None
    use_activation: bool | None = None
    raw_scores: bool | None = None
    user: Any = None
    request_id: Any = None
    priority: Any = None


async def classify(request: Request) -> Response:
    """Labels and scores of each row under `texts`, as BentoML's own clients send them; under `input` the reply that
    vLLM's clients read; under `inputs` as of `/predict`."""
    document = await read_json(request)
    keys = document.keys() if isinstance(document, dict) else set()
    if "inputs" in keys:
        asked = tei.asked(request, document)
        del document, keys  # while the request waits nothing is kept of it
        return await tei.answer(request, *asked)
    if ("texts" in keys) == ("input" in keys):
        raise ApiError(422, "the body needs exactly one of `texts`, `input` and `inputs`")
    is_vllm, is_raw = "input" in keys, False
    body: ClassifyRequest | VllmRequest
    if is_vllm:
        body = checked(VllmRequest, document)
        batch, is_raw = body.input, bool(body.raw_scores) or body.use_activation is False
    else:
        body = checked(ClassifyRequest, document)
        batch = body.texts
    rows, model = within_limits(batch, request.app.state.settings), model_named(request, body.model)
    del document, keys, body, batch
    answer = await ask(request, model, rows)
    if is_vllm:
        return await _as_vllm(model, answer, is_raw=is_raw)

    def values(rows: slice) -> list[Any]:
        return tei.labelled(model.engine, answer.probabilities[rows])

    return JsonResponse(await written(answer.logits.shape, values))


async def _as_vllm(model: Model, answer: Answer, *, is_raw: bool) -> Response:
    """The reply in vLLM's shape: each row's best label, and all scores in the order of `/info`'s labels. Scores are
    probabilities or a regression's numbers, or logits if these are asked for."""
    names, tokens = model.engine.labels or ("score",), sum(answer.tokens)

    def values(rows: slice) -> list[Any]:
        scores = activate(answer.logits[rows], "regression") if is_raw else answer.probabilities[rows]
        best = scores.argmax(axis=1).tolist()
        return [
            {"index": index, "label": names[column], "probs": row, "num_classes": len(names)}
            for index, (column, row) in enumerate(zip(best, scores.tolist(), strict=True), rows.start)
        ]

    return JsonResponse(
        {
            "id": f"classify-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": model.name,
            "data": orjson.Fragment(await written(answer.logits.shape, values)),
            "usage": {
                "prompt_tokens": tokens,
                "total_tokens": tokens,
                "completion_tokens": 0,
                "prompt_tokens_details": None,
            },
        }
    )
