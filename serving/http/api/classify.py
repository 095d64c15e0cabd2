"""`POST /classify`, in three dialects, told apart by the key under which the texts stand.

| key | whose | reply |
|---|---|---|
| `texts` | BentoML's clients, `classify(texts=[...])` | all labels of each row: [[{"label", "score"}, ...], ...] |
| `input` | vLLM's clients | {"data": [{"index", "label", "probs", "num_classes"}, ...], "usage", ...} |
| `inputs` | text-embeddings-inference's | as of `/predict` |

Under `texts` and `input` a list holds rows, each a text, [text] or [text, text]; `input` may be one text too.
"""

import time
import uuid
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from kdc.serving.engine.engine import activate
from kdc.serving.http.api import tei
from kdc.serving.http.api.asking import ask, model_asked, read_json
from kdc.serving.http.model import Answer, Model
from kdc.serving.http.replies import ApiError, JsonResponse, written

# What requests may hold besides the texts. The last three are not used: whose request it is, which, and how urgent.
_KEYS = {"texts": {"model"}, "input": {"model", "use_activation", "raw_scores", "user", "request_id", "priority"}}


async def classify(request: Request) -> Response:
    """`POST /classify`."""
    body = await read_json(request)
    if isinstance(body, dict) and "inputs" in body:
        asked = tei.asked(request, body)
        del body  # while the request waits nothing is kept of it
        return await tei.answer(request, *asked)
    keys = [key for key in _KEYS if isinstance(body, dict) and key in body]
    if len(keys) != 1:
        raise ApiError(422, "the body needs exactly one of `texts`, `input` and `inputs`")
    (key,) = keys
    tei.refuse_unknown(body, _KEYS[key] | {key}, "the body")
    options = {name: value for name, value in body.items() if value is not None}  # clients send their defaults
    items = [body[key]] if key == "input" and isinstance(body[key], str) else body[key]
    rows = tei.read_batch(items, request.app.state.settings, key)
    raw, activated = tei.flag(options, "raw_scores", False), tei.flag(options, "use_activation", True)
    model = model_asked(request, body)
    del body, options, items  # while the request waits nothing is kept of them
    answer = await ask(request, model, rows)
    if key == "texts":

        def values(rows: slice) -> list[Any]:
            return tei.labelled(model.engine, answer.probabilities[rows])

        return JsonResponse(await written(answer.logits.shape, values))
    return JsonResponse(await _as_vllm(model, answer, is_raw=raw or not activated))


async def _as_vllm(model: Model, answer: Answer, *, is_raw: bool) -> dict[str, Any]:
    """The reply in vLLM's shape: of each row the best label, and all scores in the order of `/info`'s labels, which are
    probabilities, or a regression's numbers, or logits if these are asked for."""
    names, tokens = model.engine.labels or ("score",), sum(answer.tokens)

    def values(rows: slice) -> list[Any]:
        scores = activate(answer.logits[rows], "regression") if is_raw else answer.probabilities[rows]
        best = scores.argmax(axis=1).tolist()
        return [
            {"index": index, "label": names[place], "probs": row, "num_classes": len(names)}
            for index, (place, row) in enumerate(zip(best, scores.tolist(), strict=True), rows.start)
        ]

    data = orjson.Fragment(await written(answer.logits.shape, values))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    return {
        "id": f"classify-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model.name,
        "data": data,
        "usage": usage,
    }
