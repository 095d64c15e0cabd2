"""`POST /v1/moderations` of OpenAI's clients. A label is on if its score reaches its operating point."""

import uuid
from typing import Annotated, Any

import orjson
from pydantic import BeforeValidator, Field
from starlette.requests import Request
from starlette.responses import Response

from kdc.serving.engine.deciding import decided
from kdc.serving.http.api.inference import Question, Wanted, respond
from kdc.serving.http.api.request_body import in_a_list
from kdc.serving.http.model import Answer, Model
from kdc.serving.http.replies import ApiError, JsonResponse, written

_TIMES = 3  # a result names each label three times
_Texts = Annotated[list[str], Field(min_length=1, fail_fast=True)]


class ModerationRequest(Question):
    """Texts, no images."""

    rows: Annotated[_Texts, BeforeValidator(in_a_list, str | _Texts)] = Field(alias="input")

    def wanted(self, model: Model) -> Wanted:
        if not (task := model.engine.task).traits.has_lists:
            given = f"{model.name}, {task.kind}"
            raise ApiError(422, f"moderations are answered by a multilabel model; given: {given}; /predict")
        return Wanted(score_bytes=_TIMES * model.score_bytes)

    async def reply(self, model: Model, answer: Answer) -> Response:
        def values(rows: slice) -> list[Any]:
            scores = answer.probabilities[rows]
            on = decided(scores, model.engine.task).tolist()
            return [_result(model.engine.labels, *row) for row in zip(on, scores.tolist(), strict=True)]

        results = orjson.Fragment(await written((len(answer.logits), _TIMES * len(model.engine.labels)), values))
        return JsonResponse({"id": f"modr-{uuid.uuid4().hex}", "model": model.name, "results": results})


async def moderate(request: Request) -> Response:
    """Which labels of a multi-label model each text has, for OpenAI's clients. Other models answer 422."""
    return await respond(request, ModerationRequest)


def _result(names: tuple[str, ...], on: list[bool], scores: list[float]) -> dict[str, Any]:
    categories = dict(zip(names, on, strict=True))
    return {
        "flagged": any(on),
        "categories": categories,
        "category_scores": dict(zip(names, scores, strict=True)),
        "category_applied_input_types": {name: ["text"] for name in names},
    }
