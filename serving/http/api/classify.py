"""`POST /classify`. A row is a text, [text] or [text, text]. `input` and `inputs` may also be one text."""

import time
import uuid
from typing import Annotated, Any

import orjson
from pydantic import BeforeValidator, Field
from starlette.requests import Request
from starlette.responses import Response

from kdc.serving.engine.engine import Text, activate
from kdc.serving.http.api.inference import Question, respond
from kdc.serving.http.api.request_body import Batch, checked, in_a_list, within_limits
from kdc.serving.http.api.tei import PredictRequest, labelled
from kdc.serving.http.model import Answer, Model
from kdc.serving.http.replies import JsonResponse, written
from kdc.serving.http.settings import ServeSettings


class ClassifyRequest(Question):
    """A body with `texts`."""

    rows: Batch = Field(alias="texts")

    async def reply(self, model: Model, answer: Answer) -> Response:
        def values(rows: slice) -> list[Any]:
            return labelled(model.engine, answer.probabilities[rows])

        return JsonResponse(await written(answer.logits.shape, values))


def rows_of(texts: list[Any], settings: ServeSettings) -> list[Text]:
    return within_limits(checked(ClassifyRequest, {"texts": texts}).rows, settings)


_Unused = Annotated[Any, BeforeValidator(lambda _: None)]  # any JSON, not kept


class VllmRequest(Question):
    """A body with `input`. `user`, `request_id` and `priority` are ignored."""

    rows: Annotated[Batch, BeforeValidator(in_a_list, str | Batch)] = Field(alias="input")
    use_activation: bool | None = None
    raw_scores: bool | None = None
    user: _Unused = None
    request_id: _Unused = None
    priority: _Unused = None

    async def reply(self, model: Model, answer: Answer) -> Response:
        names, tokens = model.engine.labels or ("score",), sum(answer.tokens)
        is_raw = self.raw_scores or self.use_activation is False

        def values(rows: slice) -> list[Any]:
            scores = activate(answer.logits[rows], "regression") if is_raw else answer.probabilities[rows]
            best = scores.argmax(axis=1).tolist()
            return [
                {"index": index, "label": names[column], "probs": row, "num_classes": len(names)}
                for index, (column, row) in enumerate(zip(best, scores.tolist(), strict=True), rows.start)
            ]

        data = orjson.Fragment(await written(answer.logits.shape, values))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
        return JsonResponse(
            {
                "id": f"classify-{uuid.uuid4().hex}",
                "object": "list",
                "created": int(time.time()),
                "model": model.name,
                "data": data,
                "usage": usage,
            }
        )


async def classify(request: Request) -> Response:
    """Labels and scores of each row, for clients of BentoML (`texts`), vLLM (`input`) or `/predict` (`inputs`)."""
    return await respond(request, PredictRequest, VllmRequest, ClassifyRequest)
