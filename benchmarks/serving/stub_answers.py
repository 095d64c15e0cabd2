"""The stub's answers: the same for the same text and question. Imports nothing of kdc: it is an independent oracle."""

import hashlib
import math
import struct
from collections.abc import Mapping
from typing import Any

import orjson

SYSTEM_ONE, DECISIONS = "/v1/systemone", "/v1/decisions"
MODEL = "stub-1"
INPUT_TOKENS, OUTPUT_TOKENS = 100, 7  # request, each question
OUTSIDE = "none-of-these"

Json = dict[str, Any]
Table = Mapping[str, Mapping[str, float]]  # text -> option -> probability; a noul's option is "true"


class WrongBody(ValueError):
    """The body is no request of this API."""


def text_of(path: str, body: Json) -> Any:
    """The state's `text` if it is an object with one, else the state as it is."""
    state = body.get("state" if path == SYSTEM_ONE else "input")
    if path == DECISIONS and isinstance(state, list):
        state = _content(state)
    if isinstance(state, dict) and "text" in state:
        return state["text"]
    return state


def identity(path: str, body: Json) -> str:
    """The `id` in the state; without an id the text."""
    state = body.get("state" if path == SYSTEM_ONE else "input")
    if path == DECISIONS and isinstance(state, list):
        state = _content(state)
    if isinstance(state, dict) and "id" in state:
        return str(state["id"])
    text = text_of(path, body)
    return text if isinstance(text, str) else orjson.dumps(text).decode()


def _content(messages: list[Any]) -> Any:
    content = messages[0].get("content") if len(messages) == 1 and isinstance(messages[0], dict) else messages
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        return content[0].get("data", content[0].get("text", content))
    return content


def reply(path: str, body: Any, table: Table) -> Json:
    """Raises `WrongBody` if the request has no state, or no questions of the API's form."""
    key, kind = ("state", dict) if path == SYSTEM_ONE else ("input", list)
    if not isinstance(body, dict) or body.get(key) is None or not isinstance(body.get("questions"), kind):
        raise WrongBody(f"no {key}, or no questions")
    text, asked = text_of(path, body), body["questions"]
    if not asked or not all(isinstance(each, dict) for each in (asked.values() if kind is dict else asked)):
        raise WrongBody("questions are objects")
    usage: Json = {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS * len(asked)}
    answers: Any
    if path == SYSTEM_ONE:
        answers = {name: answer(path, text, question, table) for name, question in asked.items()}
    else:
        answers = [answer(path, text, question, table) for question in asked]
        usage["total_tokens"] = sum(usage.values())
        usage["input_tokens_details"] = {"cache_write_tokens": 0, "cached_tokens": 0}
        usage["output_tokens_details"] = {"reasoning_tokens": 0}
    return {"model": MODEL, "answers": answers, "usage": usage}


def answer(path: str, text: Any, question: Json, table: Table) -> Json:
    """By the table if it has the text and all options, else by a hash of text and question.

    Raises:
        WrongBody: the question has not the form of its type.
    """
    kind = question.get("type")
    if kind in ("noul", "predicate"):
        (_, yes) = known_probabilities(text, question, ["false", "true"], table)
        return {"type": "noul", "noul": yes} if kind == "noul" else _named(question, {"probability": yes})
    try:
        values, names = _options(path, question)
    except (KeyError, TypeError, AttributeError):
        raise WrongBody(f"a {kind} without options") from None
    if kind not in ("choice", "score") or not names:
        return _named(question, {"x_stub": _digest(text, question, 4).hex()})  # of an unknown type
    probabilities = known_probabilities(text, question, names, table)
    best = probabilities.index(max(probabilities))
    measured: Json = {"confidence": (probabilities[best] - 1 / len(names)) / (1 - 1 / len(names) or 1)}
    if kind == "choice":
        measured["choice"] = values[best]
    else:
        measured["score"] = sum(level * p for level, p in enumerate(probabilities))
    if path == SYSTEM_ONE:
        keys = names if kind == "choice" else [str(level) for level in range(len(names))]
        more = {} if kind == "choice" else {"legend": dict(zip(keys, values, strict=True))}
        return {"type": kind, **measured, **more, "probabilities": dict(zip(keys, probabilities, strict=True))}
    if kind == "choice":
        listed = [{"value": value, "probability": p} for value, p in zip(values, probabilities, strict=True)]
    else:
        listed = [{"value": level, "label": names[level], "probability": p} for level, p in enumerate(probabilities)]
    return _named(question, measured | {"probabilities": listed})


def damage(fault: str, content: Json) -> None:
    """Spoil the first answer: `missing`, `type`, `outside` (other options), `absurd` (impossible numbers)."""
    answers = content["answers"]
    first = next(iter(answers)) if isinstance(answers, dict) else 0
    if fault == "missing":
        del answers[first]
    elif fault == "type":
        others = {"noul": "choice", "predicate": "choice"}
        other = others.get(answers[first]["type"], "noul" if isinstance(answers, dict) else "predicate")
        answers[first] = {**answers[first], "type": other}
    elif fault in ("outside", "absurd"):
        answers[first] = _spoiled(answers[first], is_outside=fault == "outside")


def _spoiled(answered: Json, *, is_outside: bool) -> Json:
    given = answered.get("probabilities")
    if given is None:
        return answered | {key: 1e9 for key in ("noul", "probability") if key in answered}
    if isinstance(given, dict):
        given = {f"{OUTSIDE}-{name}": p for name, p in given.items()} if is_outside else dict.fromkeys(given, 1e9)
    else:
        other = {"value": OUTSIDE} if is_outside else {"probability": 1e9}
        given = [each | other for each in given]
    return answered | {"probabilities": given} | ({"choice": OUTSIDE} if is_outside else {})


def _named(question: Json, answered: Json) -> Json:
    name = {"name": question.get("name")} if question.get("type") in ("predicate", "choice", "score") else {}
    return name | {"type": question.get("type"), **answered}


def _options(path: str, question: Json) -> tuple[list[Any], list[str]]:
    if path == SYSTEM_ONE:
        values = list(question.get("criteria") or ())
    elif question.get("type") == "choice":
        values = [option["value"] for option in question["choices"]]
    else:
        values = [level["label"] for level in question.get("levels", ())]
    return values, [value if isinstance(value, str) else orjson.dumps(value).decode() for value in values]


def known_probabilities(text: Any, question: Json, names: list[str], table: Table) -> list[float]:
    """Probabilities of `names`: by the table, else by a hash of text and question."""
    row = table.get(text) if isinstance(text, str) else None
    if row is not None and names == ["false", "true"] and "true" in row:
        return [1 - row["true"], row["true"]]
    if row is not None and all(name in row for name in names):
        return [row[name] for name in names]
    numbers = struct.unpack(f"<{len(names)}I", _digest(text, question, 4 * len(names)))
    weights = [math.exp(8 * number / 2**32) for number in numbers]
    total = sum(weights)
    return [weight / total for weight in weights]


def _digest(text: Any, question: Json, size: int) -> bytes:
    asked = {key: value for key, value in question.items() if key != "name"}
    return hashlib.shake_256(orjson.dumps([text, asked], option=orjson.OPT_SORT_KEYS)).digest(size)
