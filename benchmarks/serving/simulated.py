"""Simulated requests for `merging.py`, with the numbers of their answers."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from kdc.serving.http.api.asked import Asked
from kdc.serving.http.api.decided import DecisionBody, Key
from kdc.serving.http.api.decisions import DecisionRequest
from kdc.serving.http.api.systemone import SystemOneRequest

_MOST_QUESTIONS = 12
_OPTIONS = ("one", "two", "three")
_KNOWN = 0.6  # share of questions
_HEADERS = {"authorization": "Bearer key"}
Json = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    kind: type[DecisionBody]
    document: Json  # without a state
    known: dict[Key, str]  # names of artifacts
    kinds: dict[Key, str]
    names: dict[Key, str | None]  # of listed questions


@dataclass
class Simulated:
    number: int
    shape: Shape
    fault: str
    unsure: set[Key]
    body: DecisionBody
    document: Json
    asked: dict[Key, Asked | None]
    sent: list[Key] = field(default_factory=list)  # upstream

    def value(self, key: Key, source: str) -> float:
        """An answer's number in [0, 1). No two of one request are equal."""
        place = list(self.shape.kinds).index(key)
        return ((self.number * 7919 + place * 104_729 + (source == "local") * 611_953) % 1_000_003) / 1_000_003


def drawn_shape(dice: random.Random) -> Shape:
    is_list = dice.random() < 0.5
    count = dice.randint(1, _MOST_QUESTIONS)
    kinds = dice.choices(("noul", "choice", "score"), k=count)
    keys: list[Key] = list(range(count)) if is_list else [f"q{place}" for place in dice.sample(range(99), count)]
    names: list[str | None] = [dice.choice((None, f"n{place}")) for place in range(count)]
    if is_list:
        places = range(count)
        questions: Any = [_openais(*each) for each in zip(kinds, names, places, strict=True)]
    else:
        questions = {key: _typesafes(kind) for key, kind in zip(keys, kinds, strict=True)}
    known = {key: f"m{dice.randrange(3)}" for key in keys if dice.random() < _KNOWN}
    kind = DecisionRequest if is_list else SystemOneRequest
    by_key = dict(zip(keys, names, strict=True))
    return Shape(kind, {"model": "m", "questions": questions}, known, dict(zip(keys, kinds, strict=True)), by_key)


def _typesafes(kind: str) -> Json:
    criteria: Any = {"noul": None, "choice": dict.fromkeys(_OPTIONS), "score": list(_OPTIONS)}[kind]
    return {"type": kind, "instructions": "?", "criteria": criteria}


def _openais(kind: str, name: str | None, place: int) -> Json:
    """The instructions hold the place, for `keys_of`."""
    more: Json = {
        "noul": {},
        "choice": {"choices": [{"value": option} for option in _OPTIONS]},
        "score": {"levels": [{"label": option} for option in _OPTIONS]},
    }[kind]
    named = {} if name is None else {"name": name}
    return {"type": "predicate" if kind == "noul" else kind, "instructions": str(place), **more, **named}


def stated(shape: Shape, text: str) -> Json:
    return shape.document | {"input" if shape.kind is DecisionRequest else "state": text}


def number_of(document: Json) -> int:
    return int(document["input"] if "input" in document else document["state"])


def keys_of(document: Json) -> list[Key]:
    questions = document["questions"]
    return list(questions) if isinstance(questions, dict) else [int(each["instructions"]) for each in questions]


def upstreams_reply(simulated: Simulated, keys: Sequence[Key], fault: str) -> Json:
    """The reply, with `fault` in its first answer."""
    is_list = simulated.shape.kind is DecisionRequest
    given = {key: _answer(simulated, key, is_list=is_list) for key in keys}
    first = keys[0]
    if fault == "type":
        given[first]["type"] = {"noul": "score", "predicate": "score"}.get(given[first]["type"], "noul")
    elif fault in ("range", "option"):
        for name in ("noul", "probability", "score", "choice"):
            if name in given[first]:
                given[first][name] = "four" if name == "choice" else 2.5
    elif fault == "missing":
        del given[first]
    answers: Any = list(given.values()) if is_list else given
    if fault == "more" and not is_list:
        answers["another"] = {"type": "noul", "noul": 0.5}
    if fault == "list":
        answers = {} if is_list else []
    return {"model": "u", "answers": answers, "usage": {"input_tokens": 1, "output_tokens": 1}}


def _answer(simulated: Simulated, key: Key, *, is_list: bool) -> Json:
    value, kind = simulated.value(key, "upstream"), simulated.shape.kinds[key]
    name = {"name": simulated.shape.names[key]} if is_list else {}
    if kind == "noul":
        return name | ({"type": "predicate", "probability": value} if is_list else {"type": kind, "noul": value})
    if kind == "score":
        return name | {"type": kind, "score": value, "x_value": value}
    return name | {"type": kind, "choice": _OPTIONS[_best(value)], "x_value": value}


def spread(value: float) -> list[float]:
    """Probabilities of three options, from which `value` can be read again."""
    rest = [0.0, 0.0, 0.0]
    rest[_best(value)] = 1 - value / 4
    rest[(_best(value) + 1) % 3] = value / 4
    return rest


def _best(value: float) -> int:
    return int(value * 1000) % 3


def found_number(kind: str, answer: Json) -> float:
    if kind == "noul":
        return float(answer["noul"] if "noul" in answer else answer["probability"])
    if "x_value" in answer:
        return float(answer["x_value"])
    given = answer["probabilities"]
    chances = list(given.values()) if isinstance(given, dict) else [each["probability"] for each in given]
    return 4 * (1 - max(chances))


def said(kind: str, value: float, source: str) -> object:
    if kind == "noul":
        return value >= 0.5
    if kind == "choice":
        return _OPTIONS[_best(value)]
    return round(value if source == "upstream" else sum(place * p for place, p in enumerate(spread(value))))


def named_model(name: str) -> Any:
    return SimpleNamespace(name=name, engine=SimpleNamespace(manifest=SimpleNamespace(sha256=name)))


def made_request(shape: Shape) -> Any:
    async def receive() -> Json:
        await asyncio.sleep(3600)
        return {}

    path = "/v1/decisions" if shape.kind is DecisionRequest else "/v1/systemone"
    gate = SimpleNamespace(hold=lambda *_: None)
    app = SimpleNamespace(state=SimpleNamespace(gate=gate))
    scope = {"path": path, "raw_path": path.encode(), "query_string": b""}
    return SimpleNamespace(headers=_HEADERS, scope=scope, app=app, receive=receive)
