"""OpenAI's chat completions of the stub, with probabilities that a test knows. Imports nothing of kdc."""

import dataclasses
import hashlib
import json
import math
import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from benchmarks.serving.stub_answers import OUTSIDE, Json, Table
from benchmarks.serving.stub_chat_request import Request, WrongChat, content, understood

CHAT = "/v1/chat/completions"
RESOLVED = "stub-1-2026-11"  # answers every alias
REFUSAL = "I cannot help with that."
LOGPROBS = ("exact", "none", "zero", "9999", "missing", "alone")
_SWITCHES = {"schema": "response_format", "tools": "tools", "temperature": "temperature", "logprobs": "logprobs"}
_OUTSIDE_SHARE = 0.9  # of `OUTSIDE`
_MOST_TOP = 20  # of the API

Token = tuple[str, Mapping[str, float]]  # text, candidates' probabilities


@dataclass
class ChatBehaviour:
    """See `stub.py`."""

    logprobs: str = "exact"  # of `LOGPROBS`
    no_schema: bool = False
    no_tools: bool = False
    no_temperature: bool = False  # such a model samples always
    no_logprobs: bool = False
    think: bool = False
    order_bias: float = 0.0
    outside: float = 0.0  # share of bodies
    refuse: float = 0.0  # share of texts


def chat_behaviour(names: Iterable[str]) -> ChatBehaviour:
    """Read names such as `logprobs_zero`, `no_schema`, `think` and `outside=0.1`; others raise `ValueError`."""
    read: dict[str, Any] = {}
    kinds = {field.name: field.type for field in dataclasses.fields(ChatBehaviour)}
    for each in names:
        name, _, number = each.partition("=")
        kind, _, form = each.partition("_")
        if kind == "logprobs" and (form or "exact") in LOGPROBS:
            read["logprobs"] = form or "exact"
        elif kinds.get(name) is (float if number else bool):
            read[name] = float(number) if number else True
        else:
            raise ValueError(f"no such behaviour of a chat: {each}")
    return ChatBehaviour(**read)


def reply(body: Any, table: Table, behaviour: ChatBehaviour, dice: random.Random) -> tuple[Json, str]:
    """The reply, and the text that it labels.

    Raises:
        WrongChat: the model does not take this request.
    """
    try:
        _check(body, behaviour)
        request = understood(body, table)
        answered = [_choice(number, body, request, behaviour, dice) for number in range(body.get("n") or 1)]
    except WrongChat:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise WrongChat(f"stub: the request has a wrong form: {error!r}", None) from None
    prompt = sum(len(content(message).split()) for message in body["messages"])
    completion = sum(tokens for _, tokens in answered)
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    head = {"id": f"chatcmpl-{dice.getrandbits(64):x}", "object": "chat.completion", "created": int(time.time())}
    return head | {"model": RESOLVED, "choices": [choice for choice, _ in answered], "usage": usage}, request.text


def damage(fault: str, content: Json) -> None:
    """`missing` has no answer, `type` a number, `outside` no option, `absurd` impossible probabilities."""
    if fault == "missing":
        content["choices"] = []
    elif fault == "type":
        content["choices"][0]["message"] = {"role": "assistant", "content": 7, "refusal": None}
    elif fault == "outside":
        content["choices"][0]["message"] = {"role": "assistant", "content": OUTSIDE, "refusal": None}
    elif fault == "absurd":
        for token in (content["choices"][0].get("logprobs") or {}).get("content", ()):
            token |= {"logprob": 1e9, "top_logprobs": [each | {"logprob": 1e9} for each in token["top_logprobs"]]}


def _check(body: Json, behaviour: ChatBehaviour) -> None:
    for name, key in _SWITCHES.items():
        if getattr(behaviour, f"no_{name}") and body.get(key) is not None:
            raise WrongChat(f"{key} is not supported with this model", key)
    if not isinstance(body.get("model"), str):
        raise WrongChat("model is a string", "model")
    if not 0 <= (body.get("top_logprobs") or 0) <= (_MOST_TOP if body.get("logprobs") else 0):
        raise WrongChat(f"top_logprobs is 0 to {_MOST_TOP}, and needs logprobs", "top_logprobs")


def _choice(
    place: int, body: Json, request: Request, behaviour: ChatBehaviour, dice: random.Random
) -> tuple[Json, int]:
    message: Json = {"role": "assistant", "content": None, "refusal": None}
    choice = {"index": place, "message": message, "logprobs": None, "finish_reason": "stop"}
    if _share(request.text) < behaviour.refuse:
        message["refusal"] = REFUSAL
        return choice, len(REFUSAL.split())
    thoughts = _certain(f"<think> {' or '.join(list(request.given)[:2])} ? </think> ") if behaviour.think else []
    answer = _answer(body, request, behaviour, dice)
    tokens = (thoughts + answer)[: body.get("max_completion_tokens") or body.get("max_tokens")]
    choice["finish_reason"] = "length" if len(tokens) < len(thoughts + answer) else "stop"
    if request.tool is None:
        message["content"] = _joined(tokens)
        if body.get("logprobs"):
            choice["logprobs"] = _logprobs(tokens, body.get("top_logprobs") or 0, behaviour.logprobs)
    else:
        function = {"name": request.tool, "arguments": _joined(tokens[len(thoughts) :])}
        message["content"] = _joined(tokens[: len(thoughts)]) or None
        message["tool_calls"] = [{"id": f"call_{dice.getrandbits(64):x}", "type": "function", "function": function}]
    if behaviour.logprobs == "missing":
        del choice["logprobs"]
    return choice, len(tokens)


def _answer(body: Json, request: Request, behaviour: ChatBehaviour, dice: random.Random) -> list[Token]:
    given = request.given | {request.first: request.given[request.first] * math.exp(behaviour.order_bias)}
    total = sum(given.values())
    given = {value: weight / total for value, weight in given.items()}
    is_sampled = (body.get("temperature") or 0) > 0 or behaviour.no_temperature
    value = dice.choices(list(given), list(given.values()))[0] if is_sampled else max(given, key=given.__getitem__)
    if not request.is_corrected and _share(body) < behaviour.outside:
        value = OUTSIDE
        given = {OUTSIDE: _OUTSIDE_SHARE} | {each: p * (1 - _OUTSIDE_SHARE) for each, p in given.items()}
    if request.properties is None:
        return [(value, given)]
    return _certain(json.dumps(_object(request.properties, value, given)))


def _object(properties: Json, value: str, given: Mapping[str, float]) -> Json:
    if value == OUTSIDE:
        return {next(iter(properties)): OUTSIDE}
    numbers = {name: given.get(name, given[value]) for name, each in properties.items() if each.get("type") == "number"}
    return {name: numbers.get(name, value if "enum" in each else "because") for name, each in properties.items()}


def _certain(text: str) -> list[Token]:
    words = [f" {word}" if place else word for place, word in enumerate(text.split(" "))]
    return [(word, {word: 1.0}) for word in words]


def _joined(tokens: list[Token]) -> str:
    return "".join(token for token, _ in tokens)


def _logprobs(tokens: list[Token], top: int, form: str) -> Json | None:
    """`form` is one of `LOGPROBS`."""
    if form == "none":
        return None

    def told(token: str, probability: float) -> Json:
        logprob = {"zero": 0.0, "9999": -9999.0}.get(form, math.log(probability) if probability else -9999.0)
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    listed = []
    for token, given in tokens:
        ranked = sorted(given.items(), key=lambda candidate: -candidate[1])[:top]
        candidates = [(token, given[token])] if form == "alone" else ranked
        listed.append(told(token, given[token]) | {"top_logprobs": [told(*candidate) for candidate in candidates]})
    return {"content": listed, "refusal": None}


def _share(decides: Any) -> float:
    digest = hashlib.shake_256(orjson.dumps(decides, option=orjson.OPT_SORT_KEYS)).digest(8)
    return int.from_bytes(digest) / 2**64
