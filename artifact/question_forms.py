"""Question objects as the APIs write them: TypeSafe's (noul, choice, score) and OpenAI's (predicate, choice, score)."""

import json
from abc import ABC, abstractmethod
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)

from kdc.artifact.question import MOST_OPTIONS, Option, Question, canonical
from kdc.common.errors import InputError


def _is_content(value: Any) -> Any:
    if value is not None and not isinstance(value, str | dict | list):
        raise ValueError("Input should be a text, an object or an array")
    return value


Content = Annotated[
    Any, AfterValidator(_is_content), WithJsonSchema({"type": ["string", "object", "array", "null"]})
]  # text or JSON


class Wire(BaseModel):
    """An unknown key might change what is asked, so it is refused."""

    model_config = ConfigDict(strict=True, extra="forbid")


class WireQuestion(Wire, ABC):
    type: str
    instructions: Content = None

    @abstractmethod
    def options(self) -> list[tuple[Any, Any]]:
        """Name and description of each option."""

    @cached_property
    def question(self) -> Question:
        kind: Any = "noul" if self.type == "predicate" else self.type
        made = tuple(Option(name=name, description=description) for name, description in self.options())
        return Question(type=kind, instructions=self.instructions, options=made)


class NoulCriteria(Wire):
    true: Content = None
    false: Content = None


class Noul(WireQuestion):
    """TypeSafe's yes-or-no question."""

    type: Literal["noul"]
    criteria: NoulCriteria | None = None

    def options(self) -> list[tuple[Any, Any]]:
        criteria = self.criteria or NoulCriteria()
        return [("false", criteria.false), ("true", criteria.true)]


class Choice(WireQuestion):
    """TypeSafe's choice: options with descriptions."""

    type: Literal["choice"]
    criteria: dict[str, Content] = Field(min_length=2, max_length=MOST_OPTIONS)

    def options(self) -> list[tuple[Any, Any]]:
        return list(self.criteria.items())


class Score(WireQuestion):
    """TypeSafe's score: levels, lowest first. Canonical JSON names a level that is no text."""

    type: Literal["score"]
    criteria: list[Content] = Field(min_length=2, max_length=MOST_OPTIONS)

    def options(self) -> list[tuple[Any, Any]]:
        return [(level if isinstance(level, str) else canonical(level), None) for level in self.criteria]


class Named(WireQuestion):
    instructions: Annotated[Any, AfterValidator(_is_content), WithJsonSchema({"type": ["string", "array"]})]
    name: str | None = None


class Predicate(Named):
    """OpenAI's statement that is true or not."""

    type: Literal["predicate"]

    def options(self) -> list[tuple[Any, Any]]:
        return [("false", None), ("true", None)]


class ChoiceOption(Wire):
    value: str | bool
    description: str | None = None


class DecisionChoice(Named):
    """OpenAI's choice."""

    type: Literal["choice"]
    choices: list[ChoiceOption] = Field(min_length=2, max_length=MOST_OPTIONS)

    def options(self) -> list[tuple[Any, Any]]:
        return [(choice.value, choice.description) for choice in self.choices]


class Level(Wire):
    label: str
    description: str | None = None


class DecisionScore(Named):
    """OpenAI's score: levels, lowest first."""

    type: Literal["score"]
    levels: list[Level] = Field(min_length=2, max_length=MOST_OPTIONS)

    def options(self) -> list[tuple[Any, Any]]:
        return [(level.label, level.description) for level in self.levels]


_MOST_KEPT, _MOST_KEPT_BYTES = 32, 16 * 1024  # questions of an API; bytes of each


def _read_once(adapter: TypeAdapter[Any]) -> WrapValidator:
    """Keep the last questions read: callers send the same few."""

    @lru_cache(_MOST_KEPT)
    def read(question: bytes) -> Any:
        return adapter.validate_python(orjson.loads(question))

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            question = orjson.dumps(value)
            return read(question) if len(question) <= _MOST_KEPT_BYTES else handler(value)
        except TypeError:  # orjson cannot write it
            return handler(value)

    return WrapValidator(validate)


_TypeSafe = Annotated[Noul | Choice | Score, Discriminator("type")]
_Decision = Annotated[Predicate | DecisionChoice | DecisionScore, Discriminator("type")]
_TYPESAFE: TypeAdapter[Noul | Choice | Score] = TypeAdapter(_TypeSafe)
_DECISIONS: TypeAdapter[Predicate | DecisionChoice | DecisionScore] = TypeAdapter(_Decision)
TypeSafeQuestion = Annotated[_TypeSafe, _read_once(_TYPESAFE)]
DecisionQuestion = Annotated[_Decision, _read_once(_DECISIONS)]


def read_questions(path: Path) -> tuple[Question, ...]:
    """Read a question object of either API, or several by their labels: an object of objects, or an array of objects
    with `name`. Beside the API's keys a question may have `template` and `label`. Or read what `kdc label` asked.

    Raises:
        InputError: the file cannot be read, or holds no question.
    """
    remedy = 'write {"type": "choice", "instructions": "...", "criteria": {"LABEL": "when it applies", ...}}'
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if path.name.endswith(description_of("").name):
            return (Question.model_validate(document["question"]),)
        if isinstance(document, dict) and "type" in document:
            return (question_of(document),)
        if isinstance(document, list):
            document = {each["name"]: each for each in document}
        questions = tuple(question_of(question, label) for label, question in document.items())
    except OSError as error:
        raise InputError("the question cannot be read", given=f"{path}: {error.strerror}", remedy=remedy) from None
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        given = f"{path}: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"
        raise InputError("this is no question of a decision API", given=given, remedy=remedy) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError("the file holds no JSON of a question", given=path, remedy=remedy) from None
    if not questions:
        raise InputError("the file holds no question", given=path, remedy=remedy)
    return questions


def description_of(table: str | Path) -> Path:
    """Where `kdc label` writes a table's question and column of texts."""
    return Path(f"{table}.label.json")


def question_of(document: dict[str, Any], label: str | None = None) -> Question:
    """Read one question object.

    Raises:
        ValueError: it is no question of either API, or no JSON can hold it.
    """
    rest = {key: value for key, value in document.items() if key not in ("template", "label")}
    adapter: TypeAdapter[Any] = _TYPESAFE if "criteria" in rest or rest.get("type") == "noul" else _DECISIONS
    question: Question = adapter.validate_python(rest).question
    own = {"template": document.get("template"), "label": document.get("label", label)}
    complete = Question.model_validate(question.model_dump() | own)
    canonical(complete.model_dump())  # refuses what no JSON can hold
    return complete
