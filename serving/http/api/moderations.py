"""`POST /v1/moderations`, as OpenAI's clients send and read it: which of a multi-label model's labels a text has.

`input` is a text or a list of texts. The reply has a result for each: `categories`, whether the text has the label,
`category_scores`, its probability, and `flagged`, whether it has any. A label is on from its operating point on.
"""

import uuid
from typing import Annotated, Any

import orjson
from pydantic import BeforeValidator
from starlette.requests import Request
from starlette.responses import Response

from kdc.serving.engine.deciding import decided
from kdc.serving.http.api.inference import ask, model_named
from kdc.serving.http.api.request_body import Body, ModelName, Texts, checked, in_a_list, read_json, within_limits
from kdc.serving.http.replies import ApiError, JsonResponse, written

_TIMES = 3  # each label is in three places of a result


class ModerationRequest(Body):
    """What to moderate: texts, no images."""

    input: Annotated[Texts, BeforeValidator(in_a_list, str | Texts)]
    model: ModelName = None


async def moderate(request: Request) -> Response:
    """Which labels of a multi-label model each text has, as OpenAI's clients ask. Of any other model: 422."""
    body = checked(ModerationRequest, await read_json(request))
    rows = within_limits([[text] for text in body.input], request.app.state.settings)
    model = model_named(request, body.model)
    del body  # while the request waits nothing is kept of it
    if (kind := model.engine.task.kind) != "multilabel":
        raise ApiError(422, f"moderations are answered by a multilabel model; given: {model.name}, {kind}; /predict")
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
