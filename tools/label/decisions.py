"""Decision endpoints: TypeSafe's System One and OpenAI's Decisions, which answer with probabilities."""

from abc import abstractmethod
from typing import Any

from kdc.artifact.question import Option, canonical
from kdc.tools.label.chat_reply import Final
from kdc.tools.label.source import Answer, Ask, Call, Refused, Source, Unusable
from kdc.tools.label.spec import Spec

_NAME = "label"  # of the only question
_SUM_TOLERANCE = 0.02


class Decision(Source):
    """An endpoint that answers questions with probabilities."""

    async def answer(self, ask: Ask, text: str) -> Answer:
        body = {"model": self.spec.source.model} | self._body(text) | self.spec.source.more
        for number in range(self.spec.source.tries):
            try:
                return await ask(Call(self._path, body, number), self._read)
            except (Refused, Final):
                raise
            except Unusable:
                if number == self.spec.source.tries - 1:
                    raise
        raise AssertionError

    _path: str

    @abstractmethod
    def _body(self, text: str) -> dict[str, Any]: ...

    @abstractmethod
    def _read(self, reply: dict[str, Any]) -> Answer: ...


class SystemOne(Decision):
    _path = "/systemone"

    def _body(self, text: str) -> dict[str, Any]:
        return {"state": text, "questions": {_NAME: self._question()}}

    def _question(self) -> dict[str, Any]:
        question = self.spec.question
        described = {option.label: option.description for option in question.options}
        if question.type == "noul" and not any(described.values()):
            return {"type": "noul", "instructions": question.instructions}
        return {"type": question.type, "instructions": question.instructions, "criteria": described}

    def _read(self, reply: dict[str, Any]) -> Answer:
        answers = reply.get("answers")
        return answer_of(answers.get(_NAME) if isinstance(answers, dict) else None, self.spec)


class Decisions(Decision):
    _path = "/decisions"

    def _body(self, text: str) -> dict[str, Any]:
        return {"input": text, "questions": [self._question()]}

    def _question(self) -> dict[str, Any]:
        question = self.spec.question
        asked = {"name": _NAME, "instructions": "" if question.instructions is None else question.instructions}
        if question.type == "noul":
            return asked | {"type": "predicate"}
        choices = []
        for option in question.options:
            about = option.description
            described = {} if about is None else {"description": about if isinstance(about, str) else canonical(about)}
            choices.append({"value": option.name, **described})
        return asked | {"type": "choice", "choices": choices}

    def _read(self, reply: dict[str, Any]) -> Answer:
        answers = reply.get("answers")
        return answer_of(answers[0] if isinstance(answers, list) and len(answers) == 1 else None, self.spec)


def answer_of(answer: Any, spec: Spec) -> Answer:
    """Read either API's answer; `Unusable` if it lacks a probability."""
    if not isinstance(answer, dict):
        raise Unusable("the reply has no answer")
    if answer.get("type") == "refusal":
        raise Final("the model refused to answer")
    probabilities: list[Any]
    if spec.question.type == "noul":
        yes: Any = answer.get("noul", answer.get("probability"))
        probabilities = [1 - yes if _is_share(yes) else None, yes]
    else:
        given = answer.get("probabilities")
        if isinstance(given, list):  # OpenAI's
            options = [each for each in given if isinstance(each, dict) and isinstance(each.get("value"), str | bool)]
            given = {Option(name=each["value"]).label: each.get("probability") for each in options}
        probabilities = [given.get(label) if isinstance(given, dict) else None for label in spec.labels]
    if not all(map(_is_share, probabilities)):
        raise Unusable("the answer lacks the probability of an option")
    total = sum(probabilities)
    if abs(total - 1) > _SUM_TOLERANCE:
        raise Unusable("the probabilities do not sum to 1")
    return Answer(tuple(p / total for p in probabilities), "endpoint")


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
