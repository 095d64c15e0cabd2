"""`POST /v1/systemone` of TypeSafe's clients: questions about a state."""

from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from kdc.artifact.question_forms import TypeSafeQuestion
from kdc.serving.http.api.asked import MOST_QUESTIONS, Answered, Asked, Numbers, answers, find
from kdc.serving.http.api.request_body import MOST_OF_A_KEY, ModelName, Part, checked, in_turn, read_json
from kdc.serving.http.replies import JsonResponse


class SystemOneRequest(Part):
    """A state and questions by name. Other keys are ignored. There are no images."""

    model: ModelName = None
    state: str | dict[str, Any] | list[Any]
    questions: dict[str, TypeSafeQuestion] = Field(min_length=1, max_length=MOST_QUESTIONS)
    assets: None = None


async def system_one(request: Request) -> Response:
    """Questions of TypeSafe's System One about a state, each answered by the artifact that knows it."""
    document = await read_json(request)
    async with in_turn(request):
        body = checked(SystemOneRequest, document)
        asked = [
            find(request, body.model, question, ("questions", name[:MOST_OF_A_KEY]))
            for name, question in body.questions.items()
        ]
    answered = await answers(request, asked, body.state)
    return JsonResponse(_reply(body, asked, answered))


def _reply(body: SystemOneRequest, asked: list[Asked], answered: Answered) -> dict[str, Any]:
    questions = zip(body.questions.items(), asked, answered.numbers, strict=True)
    return {
        "model": answered.models,
        "answers": {name: _answer(question, each, numbers) for (name, question), each, numbers in questions},
        "usage": {"input_tokens": answered.tokens, "output_tokens": 0},
    }


def _answer(wire: Any, asked: Asked, numbers: Numbers) -> dict[str, Any]:
    probabilities, kind = numbers.probabilities, asked.question.type
    if kind == "noul":
        return {"type": kind, "noul": probabilities[0], **numbers.more}
    measured: dict[str, Any] = {"type": kind, "confidence": numbers.confidence, **numbers.more}
    if kind == "choice":
        by_name = dict(zip(wire.criteria, probabilities, strict=True))
        return measured | {"choice": max(by_name, key=by_name.__getitem__), "probabilities": by_name}
    levels = [str(level) for level in range(len(probabilities))]
    return measured | {
        "score": sum(level * p for level, p in enumerate(probabilities)),
        "legend": dict(zip(levels, wire.criteria, strict=True)),
        "probabilities": dict(zip(levels, probabilities, strict=True)),
    }
