"""SPEC.toml of `kdc label`: the model, the question, and what a call costs."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from kdc.artifact.question import Option, Question
from kdc.artifact.question_forms import question_of
from kdc.common.errors import InputError
from kdc.common.frozen import Frozen

NOUL = ("false", "true")  # yes-or-no question's labels


class Model(Frozen):
    kind: Literal["systemone", "decisions", "chat"]
    url: str = Field(pattern=r"^https?://[^/\s]+")  # with the version: https://api.example.com/v1
    model: str = Field(min_length=1)
    key_env: str | None = None  # key's environment variable
    timeout_s: float = Field(60, gt=0, le=3600)
    batch: bool = False  # write calls and read results as files
    concurrency: int = Field(16, ge=1, le=512)  # calls at once
    tries: int = Field(3, ge=1, le=20)  # of an answer outside the list
    most_output_tokens: int = Field(1000, ge=1, le=100_000)  # for the worst case of `--max-usd`
    # Of a chat model. "auto" takes the first that the model really gives.
    probabilities: Literal["auto", "logprobs", "stated", "votes"] = "auto"
    votes: int = Field(5, ge=1, le=100)  # samples of a text
    temperature: float | None = Field(1.0, ge=0, le=2)  # of samples; None: not sent
    more: dict[str, Any] = Field(default_factory=dict)  # further keys of each body, such as reasoning_effort


class Prices(Frozen):
    """US dollars."""

    input: float = Field(0, ge=0)  # of a million tokens
    output: float = Field(0, ge=0)
    request: float = Field(0, ge=0)  # of a call

    def usd(self, input_tokens: int, output_tokens: int) -> float:
        return (self.input * input_tokens + self.output * output_tokens) / 1e6 + self.request


class Example(Frozen):
    """A labelled text that a chat model sees before the text in question."""

    text: str
    label: str


class Spec(Frozen):
    source: Model
    question: Question
    examples: tuple[Example, ...] = ()
    prices: Prices = Prices()
    text: str = "text"  # column
    label: str | None = None  # column of people's labels; rows that have one are not asked
    prompt: str | None = None  # the user's message in logged chats, with {text} for the text

    @field_validator("question", mode="before")
    @classmethod
    def _question(cls, value: Any) -> Any:
        return question_of(value) if isinstance(value, dict) else value

    @field_validator("prompt")
    @classmethod
    def _has_text_once(cls, prompt: str | None) -> str | None:
        if prompt is not None and prompt.count("{text}") != 1:
            raise ValueError("the prompt has to hold {text} once")
        return prompt

    @model_validator(mode="after")
    def _labels_exist(self) -> "Spec":
        if wrong := sorted({example.label for example in self.examples} - set(self.labels)):
            raise ValueError(f"examples have labels that the question lacks: {', '.join(wrong[:5])}")
        if self.question.type == "score":
            raise ValueError("kdc label asks a choice or a noul; a score has no labels")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("two options have one name")
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        return NOUL if self.question.type == "noul" else tuple(option.label for option in self.question.options)

    @property
    def options(self) -> tuple[Option, ...]:
        return self.question.options

    def key(self) -> str | None:
        """Raises InputError if the named variable is empty."""
        name = self.source.key_env
        if name is None:
            return None
        if not (key := os.environ.get(name)):
            what = "the key is not in the environment"
            raise InputError(what, given=f"key_env = {name}", remedy=f"export {name}=...")
        return key


TEMPLATE = """# What `kdc label` asks, and where.
text = "text"  # the column with the texts
# label = "label"  # a column with people's labels: kdc does not ask about rows that have one
# prompt = "Classify this mail: {text}"  # of logged chats: the user's message as it was sent (--traces)

[source]
kind = "chat"  # chat (any OpenAI-compatible chat completions), systemone or decisions
url = "https://api.openai.com/v1"
model = "gpt-5-mini"
key_env = "OPENAI_API_KEY"  # the variable that holds the key
# batch = true  # write the calls into OUT.batch.jsonl, for the endpoint's batch API
# concurrency = 16  # most calls at once
# timeout_s = 60
# tries = 3  # of an answer outside the list
# probabilities = "auto"  # auto, logprobs, stated or votes
# votes = 5  # samples of a text, for "votes"
# temperature = 1.0  # of samples, for "votes"; if the model takes no temperature: more = { temperature = "" }
# most_output_tokens = 1000  # of a reply; the worst case of --max-usd counts with it
# more = { reasoning_effort = "low" }  # further keys of each request

[prices]  # US dollars, for --max-usd and the estimate
input = 0.25  # of a million tokens
output = 2.0
# request = 0.0  # of a call

[question]  # the same object as `kdc compress --question`
type = "choice"
instructions = "What does the customer want?"

[question.criteria]  # each label, and when it applies
refund = "money back"
delivery = "where the parcel is"
other = "anything else"

# [[examples]]  # a few labelled texts help a chat model
# text = "Where is my order?"
# label = "delivery"
"""


def read_spec(path: Path) -> Spec:
    """Raises InputError, with the line, if the file cannot be read or a key is wrong."""
    remedy = f"kdc label --init {path} writes one with comments"
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise InputError("the spec cannot be read", given=f"{path}: {error.strerror}", remedy=remedy) from None
    except ValueError as error:  # also bytes that are no UTF-8
        raise InputError("the spec is no TOML", given=f"{path}: {error}", remedy=remedy) from None
    try:
        return Spec.model_validate(document)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        names = [part for part in wrong["loc"] if isinstance(part, str)]
        line = _line_of(text, names)
        given = f"{path}{f', line {line}' if line else ''}: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"
        raise InputError("the spec has a wrong key", given=given, remedy=remedy) from None


def _line_of(text: str, names: list[str]) -> int | None:
    table: list[str] = []
    best: tuple[int, int] | None = None  # matches, line
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\[?([^\]]+)\]", line):
            table = [part.strip().strip('"') for part in header[1].split(".")]
            path = table
        elif key := re.match(r'\s*"?([\w -]+?)"?\s*=', line):
            path = [*table, key[1]]
        else:
            continue
        if path == names[: len(path)] and (best is None or len(path) > best[0]):
            best = len(path), number
    return None if best is None else best[1]


def write_template(path: Path) -> None:
    """Raises InputError if the file is there already."""
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(TEMPLATE)
    except FileExistsError:
        raise InputError("the file is there already", given=path, remedy="another name") from None
