"""A body of questions, and its answer: local, or merged with the upstream's."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kdc.artifact.decision import HALF
from kdc.artifact.question_forms import WireQuestion
from kdc.serving.http.api.asked import Asked, Numbers, answers, find, unknown
from kdc.serving.http.api.request_body import (
    MOST_OF_A_KEY,
    ModelName,
    Part,
    checked,
    decode_in_turn,
    in_turn,
    read_json_bytes,
)
from kdc.serving.http.replies import ApiError, JsonResponse, Steps
from kdc.serving.upstream.reply import unusable

Key = str | int  # a question's name, or place in a list
AnswerObject = dict[str, Any]
REFUSAL = "refusal"  # a declined answer


class DecisionBody(Part):
    """Its `questions`, and a reply's `answers`, are by name or a list."""

    model: ModelName = None

    @property
    @abstractmethod
    def by_key(self) -> Mapping[Any, WireQuestion]:
        """The questions, in order."""

    @abstractmethod
    def stated(self) -> Any:
        """The state that the questions are about. Raises `ApiError` if there is none."""

    @abstractmethod
    def answer(self, wire: Any, numbers: Numbers) -> AnswerObject:
        """A question's answer."""

    @abstractmethod
    def usage(self, tokens: int) -> dict[str, Any]:
        """The usage of answers that read so many tokens."""

    def reply(self, given: Sequence[AnswerObject], model: str, tokens: int) -> dict[str, Any]:
        return {"model": model, "answers": self._collected(given), "usage": self.usage(tokens)}

    def merged(self, given: Sequence[AnswerObject], reply: dict[str, Any], tokens: int) -> dict[str, Any]:
        """The upstream's reply, with local answers merged in."""
        usage = _added(self.usage(tokens), reply.get("usage"))
        return reply | {"answers": self._collected(given), "usage": usage}

    def _collected(self, given: Sequence[AnswerObject]) -> Any:
        keys = list(self.by_key)
        return list(given) if isinstance(keys[0], int) else dict(zip(keys, given, strict=True))

    def answers_in(self, reply: Any, keys: Sequence[Key]) -> list[AnswerObject]:
        """The upstream's answers to the questions `keys`. It was asked no others.

        Raises:
            UpstreamFailed: one is missing, or does not answer its question.
        """
        given = reply.get("answers") if isinstance(reply, dict) else None
        if isinstance(keys[0], int) and isinstance(given, list) and len(given) == len(keys):
            found = given
        elif isinstance(keys[0], str) and isinstance(given, dict):
            found = [given.get(key) for key in keys]
        else:
            raise unusable("has no answers, or not as many as questions")
        for key, answer in zip(keys, found, strict=True):
            if not isinstance(answer, dict) or not _answers(answer, self.by_key[key]):
                raise unusable("has no fitting answer to a question")
        return found


def without(document: dict[str, Any], keys: Iterable[Key]) -> dict[str, Any]:
    """The body with only the questions `keys`."""
    kept: list[Any] = list(keys)
    questions = document["questions"]
    only = [questions[key] for key in kept] if isinstance(questions, list) else {key: questions[key] for key in kept}
    return document | {"questions": only}


def _answers(answer: AnswerObject, wire: Any) -> bool:
    """Whether it fits. A refusal with the question's name does."""
    name = getattr(wire, "name", None)
    if name is not None and answer.get("name") != name:
        return False
    if answer.get("type") == REFUSAL:
        return True
    if answer.get("type") != wire.type:
        return False
    options = wire.options()
    if wire.type == "choice":
        return answer.get("choice") in [name for name, _ in options]
    value = answer.get({"noul": "noul", "predicate": "probability", "score": "score"}[wire.type])
    most = len(options) - 1 if wire.type == "score" else 1
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most


def verdict(answer: AnswerObject) -> object:
    """What an answer says: yes or no, the option, or the nearest level. Raises UpstreamFailed for a refusal."""
    match answer["type"]:
        case kind if kind == REFUSAL:
            raise unusable("refuses an answer")
        case "choice":
            return answer["choice"]
        case "score":
            return round(answer["score"])
        case kind:
            return answer["noul" if kind == "noul" else "probability"] >= HALF


def _added(own: dict[str, Any], theirs: object) -> dict[str, Any]:
    if not isinstance(theirs, dict):
        return own
    total: dict[str, Any] = own | theirs
    for name in own.keys() & theirs.keys():
        if isinstance(own[name], dict):
            total[name] = _added(own[name], theirs[name])
        elif isinstance(theirs[name], int):
            total[name] = own[name] + theirs[name]
    return total


async def respond(request: Request, kind: type[DecisionBody]) -> Response:
    raw = await read_json_bytes(request)
    document = await decode_in_turn(request, raw)
    forwarding = request.app.state.forwarding
    try:
        async with in_turn(request):
            body = checked(kind, document)
            asked = {key: find(request, body.model, wire, _where(key)) for key, wire in body.by_key.items()}
            state = body.stated()
    except ApiError:
        if forwarding is None:
            raise
        whole: Response = await forwarding.whole(request, raw)  # the upstream may know better
        return whole
    if forwarding is not None:
        merged: Response = await forwarding.answer(request, raw, document, body, asked, state)
        return merged
    known: dict[Key, Asked] = {}
    for key, each in asked.items():
        if each is None:
            raise unknown(request.app.state.registry, _where(key))
        known[key] = each
    answered = await answers(request, list(known.values()), state)
    given = [body.answer(body.by_key[key], numbers) for key, numbers in zip(known, answered.numbers, strict=True)]
    return JsonResponse(body.reply(given, answered.models, answered.tokens))


def _where(key: Key) -> Steps:
    return ("questions", key[:MOST_OF_A_KEY] if isinstance(key, str) else key)
