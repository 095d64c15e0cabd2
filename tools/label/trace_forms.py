"""Reads a row of logged answers, in each form that `kdc label --traces` knows. Rows are hostile: types are checked."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from kdc.artifact.question import canonical, state_text
from kdc.common.records import parse_jsonl
from kdc.serving.engine.tokenizing import is_blank, is_utf8
from kdc.serving.http.api.decisions import DecisionRequest
from kdc.serving.http.api.systemone import SystemOneRequest
from kdc.serving.http.replies import ApiError
from kdc.serving.upstream.reply import UpstreamFailed
from kdc.tools.label.chat_reply import Json, candidates, content, decoded, items, plain
from kdc.tools.label.decisions import answer_of
from kdc.tools.label.source import Answer, How, Unusable
from kdc.tools.label.spec import Spec

_PAIRS = (("request", "response"), ("input", "output"), ("body", "response"))  # a request, its reply
_REQUESTS = ("questions", "messages", "input")  # each API's key
_ANSWERS = ("label", "answer", "output")  # columns, or keys of JSON
_ROUNDING = 0.02  # by which a written sum may miss 1
_LEAST_MASS = 0.5  # of the labels among a token's candidates


class NoTrace(Exception):
    """No usable answer."""

    def __init__(self, why: Literal["outside", "unreadable", "other"]) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True, slots=True)
class Trace:
    text: str
    answer: Answer
    model: str | None  # as the reply names it


class RowReader:
    def __init__(self, spec: Spec) -> None:
        self._spec, self._labels = spec, spec.labels
        self._exact = {label: place for place, label in enumerate(spec.labels)}
        names = self._exact | ({"no": 0, "yes": 1} if spec.question.type == "noul" else {})
        forms = Counter(map(plain, names))
        self._plain = {plain(name): place for name, place in names.items() if forms[plain(name)] == 1}
        places = range(len(spec.labels))
        self._bare = [Answer(tuple(float(place == own) for place in places), "bare") for own in places]
        self._fingerprint = spec.question.fingerprint
        self._before, self._after = (spec.prompt or "{text}").split("{text}")

    def read(self, row: Json) -> Trace:
        """Read a row in the form that its keys tell; `NoTrace` without a usable answer."""
        text, answer, model = self._read(row)
        if not isinstance(text, str) or is_blank(text) or not is_utf8(text):
            raise NoTrace("unreadable")
        return Trace(text, answer, model if isinstance(model, str) and is_utf8(model) else None)

    def _read(self, row: Json) -> tuple[Any, Answer, Any]:
        for asked, replied in _PAIRS:
            request = _body(row.get(asked))
            if replied in row and not request.keys().isdisjoint(_REQUESTS):
                return self._exchange(request, _body(row[replied]))
        messages = _from_json(row.get("messages"))
        if isinstance(messages, list) and messages and _is_of(messages[-1], "assistant"):  # OpenAI's fine-tuning files
            return self._sent(messages), self._said({"choices": [{"message": messages[-1]}]}), None
        return self._cells(row)

    def _exchange(self, request: Json, reply: Json) -> tuple[Any, Answer, Any]:
        if "questions" in request:
            return *self._decision(request, reply), reply.get("model")
        sent = request.get("messages", request.get("input"))
        messages = [{"role": "user", "content": sent}] if isinstance(sent, str) else sent
        return self._sent(messages), self._said(_as_chat(reply) if "output" in reply else reply), reply.get("model")

    def _decision(self, request: Json, reply: Json) -> tuple[str, Answer]:
        kind = DecisionRequest if isinstance(request["questions"], list) else SystemOneRequest
        try:
            body = kind.model_validate(request)
            asked = [wire.question.fingerprint for wire in body.by_key.values()]
            if self._fingerprint not in asked:
                raise NoTrace("other")
            text = state_text(body.stated(), self._spec.question.template)
            answer = body.answers_in(reply, list(body.by_key))[asked.index(self._fingerprint)]
            return text, answer_of(answer, self._spec)
        except (ValueError, TypeError, ApiError, UpstreamFailed, Unusable):  # TypeError: Parquet's values beyond JSON
            raise NoTrace("unreadable") from None

    def _sent(self, messages: Any) -> str:
        users = [each for each in messages if _is_of(each, "user")] if isinstance(messages, list) else []
        sent = users[-1].get("content") if users else None
        if isinstance(sent, list):
            texts = [part["text"] for part in sent if isinstance(part, dict) and isinstance(part.get("text"), str)]
            sent = "\n".join(texts) if len(texts) == len(sent) else None  # None: an image
        if not isinstance(sent, str):
            raise NoTrace("unreadable")
        end = len(sent) - len(self._after)
        if end < len(self._before) or not sent.startswith(self._before) or not sent.endswith(self._after):
            raise NoTrace("other")
        return sent[len(self._before) : end]

    def _said(self, reply: Json) -> Answer:
        try:
            label = self._label(content(reply, may_be_cut=True))
        except Unusable:
            raise NoTrace("unreadable") from None
        is_cut = items(reply, "choices")[0].get("finish_reason") == "length"
        if is_cut and sum(name.startswith(self._labels[label]) for name in self._labels) > 1:
            raise NoTrace("outside")  # it may begin another label
        try:
            return self._of_tokens(candidates(reply), label)
        except Unusable:
            return self._bare[label]

    def _label(self, answer: str) -> int:
        """An answer is a label, or a JSON object with a label as its value. A label within prose does not count."""
        if (label := self._place(answer)) is not None:
            return label
        try:
            document = decoded(answer)
        except Unusable:
            raise NoTrace("outside") from None
        values = [document[key] for key in _ANSWERS if key in document][:1] or list(document.values())
        kinds = str | bool if len(values) > 1 else str | int  # a number beside texts is a score
        places = [self._place(_name(value)) for value in values if isinstance(value, kinds)]
        found = {place for place in places if place is not None}
        if len(found) != 1:
            raise NoTrace("outside")
        return found.pop()

    def _place(self, text: str) -> int | None:
        place = self._exact.get(text.strip())
        return self._plain.get(plain(text)) if place is None else place

    def _of_tokens(self, listed: dict[str, float], label: int) -> Answer:
        """Probabilities of first tokens that are whole labels, else the bare label."""
        masses = [0.0] * len(self._labels)
        for token, probability in listed.items():
            if (place := self._place(token)) is not None:
                masses[place] += probability
        total = sum(masses)
        if not masses[label] or sum(mass > 0 for mass in masses) < 2 or total < _LEAST_MASS:
            return self._bare[label]
        return Answer(tuple(mass / total for mass in masses), "logprobs")

    def _cells(self, row: Json) -> tuple[Any, Answer, Any]:
        answers = [row[key] for key in _ANSWERS if key in row]
        has_probabilities = self._exact.keys() <= row.keys()
        if self._spec.text not in row or not (answers or has_probabilities):
            raise NoTrace("other")
        if has_probabilities:
            how: How = next((how for how in get_args(How) if row.get("how") == how), "endpoint")
            answer = Answer(_distribution(map(row.get, self._labels)), how)
        else:
            answer = self._said({"choices": [{"message": {"content": _name(answers[0])}}]})
        return row[self._spec.text], answer, row.get("model")


def _from_json(value: Any) -> Any:
    return next(parse_jsonl([value], finite=True), (0, "", None))[2] if isinstance(value, str) else value


def _body(value: Any) -> Json:
    """Unwraps OpenAI's batch files; {} without a body."""
    value = _from_json(value)
    for envelope in ("response", "body"):
        if isinstance(value, dict) and envelope in value:
            value = _from_json(value[envelope])
    return value if isinstance(value, dict) else {}


def _is_of(message: Any, role: str) -> bool:
    return isinstance(message, dict) and message.get("role") == role


def _as_chat(reply: Json) -> Json:
    output = [item for item in items(reply, "output") if isinstance(item, dict)]
    calls = [{"function": item} for item in output if item.get("type") == "function_call"]
    messages = [item for item in output if item.get("type") == "message"]
    parts = [part for part in items(messages[-1] if messages else None, "content") if isinstance(part, dict)]
    texts = [part | {"type": "text"} for part in parts if part.get("type") == "output_text"]
    logprobs = items(texts[0], "logprobs") if len(texts) == 1 else []
    ended = "length" if reply.get("status") == "incomplete" else "stop"
    message = {"tool_calls": calls, "content": texts}
    return {"choices": [{"message": message, "logprobs": {"content": logprobs}, "finish_reason": ended}]}


def _name(value: Any) -> Any:
    """Numbers and booleans may be labels."""
    return canonical(value) if isinstance(value, int) else value


def _distribution(values: Iterable[Any]) -> tuple[float, ...]:
    try:
        given = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        raise NoTrace("unreadable") from None
    total = sum(given)
    if not all(0 <= value <= 1 for value in given) or abs(total - 1) > _ROUNDING:
        raise NoTrace("unreadable")
    return tuple(value / total for value in given)
