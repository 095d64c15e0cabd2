"""The question that an artifact answers, as decision APIs ask it: TypeSafe's System One and OpenAI's Decisions.

Imports only pydantic and the standard library, like the manifest.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, StrictBool, StrictStr

from kdc.artifact.task_kinds import TaskKind
from kdc.common.frozen import Frozen

MOST_OPTIONS = 255
_MOST_DEEP = 100  # nested objects and arrays; OpenAI takes 32
_KEY = re.compile(r"\{([^{}]+)\}")
_YES, _NO = ("true", "yes", "1"), ("false", "no", "0")


def canonical(value: Any) -> str:
    """A JSON value as text: sorted keys, no spaces.

    Raises:
        ValueError: it is nested too deeply, or holds NaN or infinity.
    """
    level, depth = [value], 0
    while level := [child for each in level if isinstance(each, dict | list) for child in _children(each)]:
        depth += 1
        if depth > _MOST_DEEP:
            raise ValueError(f"JSON is nested too deeply, at most {_MOST_DEEP} levels")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _children(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def state_text(state: Any, template: str | None) -> str:
    """The text that a model reads. An object fills the template's `{key}`s; other JSON is written canonically.

    Raises:
        ValueError: the object lacks a key of the template, or is nested too deeply.
    """
    if isinstance(state, str):
        return state
    if template is None or not isinstance(state, dict):
        return canonical(state)
    if missing := set(_KEY.findall(template)) - state.keys():
        raise ValueError(f"the state has no key {', '.join(sorted(missing))}")
    return _KEY.sub(lambda key: state_text(state[key[1]], None), template)


class Option(Frozen):
    """An option of a choice, a level of a score, or one of a noul's `false` and `true`."""

    name: StrictStr | StrictBool  # OpenAI's options may be booleans
    description: Any = None  # any JSON

    @property
    def label(self) -> str:
        return canonical(self.name) if isinstance(self.name, bool) else self.name


class Question(Frozen):
    type: Literal["noul", "choice", "score"]  # OpenAI calls a noul predicate
    instructions: Any = None  # any JSON
    options: tuple[Option, ...] = Field(min_length=2, max_length=MOST_OPTIONS)  # of a score: levels, lowest first
    # See `state_text`. None: canonical JSON.
    template: str | None = None
    label: str | None = None  # the one that a noul asks for; None: the one called true, yes or 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, the same in both APIs. The order counts for levels only. An empty text counts as none."""
        options = [[option.name, _told(option.description)] for option in self.options]
        if self.type == "choice":
            options.sort(key=lambda option: (isinstance(option[0], bool), str(option[0])))
        return hashlib.sha256(canonical([self.type, _told(self.instructions), options]).encode()).hexdigest()

    def outputs(self, labels: tuple[str, ...], kind: TaskKind, yes: str | None = None) -> tuple[int, ...] | None:
        """The model's output for each option; for a noul the output of yes alone. None if none fit."""
        if self.type == "noul":
            yes = yes or self.label or _yes_of(labels)
            return (labels.index(yes),) if yes in labels else None
        names = [option.label for option in self.options]
        numbers = [str(level) for level in range(len(names))]
        for wanted in (names, numbers) if self.type == "score" else (names,):
            if kind.is_exclusive and len(wanted) == len(labels) and set(wanted) == set(labels):
                places = {label: place for place, label in enumerate(labels)}
                return tuple(places[label] for label in wanted)
        return None

    @property
    def text(self) -> str:
        asked = self.instructions if isinstance(self.instructions, str) else canonical(self.instructions)
        options = "" if self.type == "noul" else f" ({len(self.options)}: {self.options[0].label}, ...)"
        return f"{self.type}{options} {_shortened(asked)!r}"


def _told(value: Any) -> Any:
    return None if value == "" else value


def _yes_of(labels: tuple[str, ...]) -> str | None:
    for yes, no in zip(_YES, _NO, strict=True):
        if sorted(label.lower() for label in labels) == sorted((yes, no)):
            return next(label for label in labels if label.lower() == yes)
    return None


def _shortened(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def misfit(questions: tuple[Question, ...], labels: tuple[str, ...], kind: TaskKind, *, is_pair: bool) -> str:
    """Why a task cannot answer these questions, or ""."""
    if questions and is_pair:
        return "a question is about one text, and the task has pairs"
    if len(questions) > 1 and not kind.has_lists:
        return "only a multi-label task answers several questions, one for each label"
    for question in questions:
        if question.outputs(labels, kind) is None:
            wanted = question.label or ", ".join(option.label for option in question.options)
            shown = _shortened(", ".join(labels) or "a number")
            return f"the {question.type} asks for {_shortened(wanted)}, and the task's labels are {shown}"
    return ""
