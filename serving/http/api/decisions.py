"""`POST /v1/decisions` of OpenAI's clients: questions about an input; and `GET /v1/models`, for both APIs' clients."""

import contextlib
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from kdc.artifact.question import state_text
from kdc.artifact.question_forms import DecisionQuestion, WireQuestion
from kdc.serving.http.api.asked import MOST_QUESTIONS, Numbers
from kdc.serving.http.api.decided import DecisionBody, respond
from kdc.serving.http.api.inference import require_ready
from kdc.serving.http.model import Model
from kdc.serving.http.replies import ApiError, JsonResponse

_CONTENTS = ("content", "output", "input", "arguments")  # keys of a message, a tool's output, and calls
_OF_PARTS = ("text", "data", "refusal")


class DecisionRequest(DecisionBody):
    """An input and questions. Other keys are ignored."""

    input: str | Annotated[list[dict[str, Any]], Field(min_length=1)]
    questions: list[DecisionQuestion] = Field(min_length=1, max_length=MOST_QUESTIONS)

    @property
    def by_key(self) -> dict[int, WireQuestion]:
        return dict(enumerate(self.questions))

    def stated(self) -> Any:
        return _state(self.input)

    def answer(self, wire: Any, numbers: Numbers) -> dict[str, Any]:
        probabilities, kind = numbers.probabilities, wire.type
        if kind == "predicate":
            return {"name": wire.name, "type": kind, "probability": probabilities[0], **numbers.more}
        measured = {"name": wire.name, "type": kind, "confidence": numbers.confidence, **numbers.more}
        if kind == "choice":
            names = [choice.value for choice in wire.choices]
            values = [{"value": name, "probability": p} for name, p in zip(names, probabilities, strict=True)]
            return measured | {"choice": names[probabilities.index(max(probabilities))], "probabilities": values}
        levels = [
            {"value": level, "label": each.label, "probability": p}
            for level, (each, p) in enumerate(zip(wire.levels, probabilities, strict=True))
        ]
        score = sum(level * p for level, p in enumerate(probabilities))
        return measured | {"score": score, "probabilities": levels}

    def usage(self, tokens: int) -> dict[str, Any]:
        details = {
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        return {"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens} | details


async def decide(request: Request) -> Response:
    """Questions of OpenAI's Decisions about an input, each answered by the artifact that knows it."""
    return await respond(request, DecisionRequest)


def _state(given: str | list[dict[str, Any]]) -> Any:
    """The text or JSON of the only message, else a line `role: text` for each message."""
    if isinstance(given, str):
        return given
    contents = [_content(item) for item in given]
    if len(contents) == 1:
        return contents[0]
    names = [item.get("role") or item.get("type") for item in given]
    if not all(isinstance(name, str) for name in names):
        raise _no_text()
    return "\n".join(f"{name}: {_text(content)}" for name, content in zip(names, contents, strict=True))


def _content(item: dict[str, Any]) -> Any:
    content = next((item[key] for key in _CONTENTS if key in item), None)
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    found = [next((part[key] for key in _OF_PARTS if key in part), None) for part in parts if isinstance(part, dict)]
    if not parts or len(found) < len(parts) or not all(isinstance(each, str | dict | list) for each in found):
        raise _no_text()
    return found[0] if len(found) == 1 else "\n".join(map(_text, found))


def _text(content: Any) -> str:
    try:
        return state_text(content, None)
    except ValueError as error:
        raise ApiError(422, str(error), where=("input",)) from None


def _no_text() -> ApiError:
    return ApiError(422, "a message has no text; send texts or JSON, no images", where=("input",))


async def models(request: Request) -> Response:
    """The artifacts and their questions, in the form of both APIs."""
    require_ready(request)
    served: dict[str, Model] = request.app.state.registry.models
    listed, described = [], []
    for name, model in served.items():
        manifest = model.engine.manifest
        created, moment = "" if manifest is None else manifest.created, 0
        with contextlib.suppress(ValueError):
            moment = int(datetime.fromisoformat(created).timestamp())
        questions = "; ".join(question.text for question in model.questions.values())
        description = questions or f"{model.engine.task.name}: {model.engine.task.kind}"
        listed.append({"id": name, "object": "model", "created": moment, "owned_by": "kdc"})
        described.append({"name": name, "description": description, "release_date": created[:10]})
    own = {"object": "list", "data": listed, "models": described}
    forwarding = request.app.state.forwarding
    return JsonResponse(own) if forwarding is None else await forwarding.models(request, own)
