"""`POST /v1/systemone` of TypeSafe's clients: questions about a state."""

from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from kdc.artifact.question_forms import TypeSafeQuestion, WireQuestion
from kdc.serving.http.api.asked import MOST_QUESTIONS, Numbers
from kdc.serving.http.api.decided import DecisionBody, respond


class SystemOneRequest(DecisionBody):
    """A state and questions by name. Other keys are ignored. There are no images."""

    state: str | dict[str, Any] | list[Any]
    questions: dict[str, TypeSafeQuestion] = Field(min_length=1, max_length=MOST_QUESTIONS)
    assets: None = None

    @property
    def by_key(self) -> dict[str, WireQuestion]:
        return dict(self.questions)

    def stated(self) -> Any:
        return self.state

    def answer(self, wire: Any, numbers: Numbers) -> dict[str, Any]:
        probabilities, kind = numbers.probabilities, wire.type
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

    def usage(self, tokens: int) -> dict[str, Any]:
        return {"input_tokens": tokens, "output_tokens": 0}


async def system_one(request: Request) -> Response:
    """Questions of TypeSafe's System One about a state, each answered by the artifact that knows it."""
    return await respond(request, SystemOneRequest)
