"""`POST /v1/moderations`, as OpenAI's clients send and read it: which of a multi-label model's labels a text has.

`input` is a text or a list of texts. The reply has a result for each: `categories`, whether the text has the label,
`category_scores`, its probability, and `flagged`, whether it has any. A label is on from its operating point on.
"""

import uuid
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from kdc.serving.engine.deciding import decided
from kdc.serving.http.api import tei
from kdc.serving.http.api.asking import ask, model_asked, read_json, within_limits
from kdc.serving.http.replies import ApiError, JsonResponse, written

_TIMES = 3  # each label is in three places of a result


async def moderate(request: Request) -> Response:
    """`POST /v1/moderations`."""
    body = await read_json(request)
    if not isinstance(body, dict) or "input" not in body:
        raise ApiError(422, 'the body has no `input`; send {"input": "a text"}')
    tei.refuse_unknown(body, {"input", "model"}, "the body")
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ApiError(422, "`input` is not a text or a list of texts, or is empty; images are not taken")
    rows = within_limits([[text] for text in texts], request.app.state.settings)
    model = model_asked(request, body)
    if (kind := model.engine.task.kind) != "multilabel":
        raise ApiError(422, f"moderations are answered by a multilabel model; given: {model.name}, {kind}; /predict")
    del body, texts  # while the request waits nothing is kept of them
    answer = await ask(request, model, rows, score_bytes=_TIMES * model.score_bytes)

    def values(rows: slice) -> list[Any]:
        scores = answer.probabilities[rows]
        gets = decided(scores, model.engine.task).tolist()
        return [_result(model.engine.labels, *row) for row in zip(gets, scores.tolist(), strict=True)]

    results = orjson.Fragment(await written((len(answer.logits), _TIMES * len(model.engine.labels)), values))
    return JsonResponse({"id": f"modr-{uuid.uuid4().hex}", "model": model.name, "results": results})


def _result(names: tuple[str, ...], gets: list[bool], scores: list[float]) -> dict[str, Any]:
    """The result for one text by whether it gets each label, and the label's probability."""
    categories = dict(zip(names, gets, strict=True))
    return {
        "flagged": any(categories.values()),
        "categories": categories,
        "category_scores": dict(zip(names, scores, strict=True)),
        "category_applied_input_types": {name: ["text"] for name in names},
    }
