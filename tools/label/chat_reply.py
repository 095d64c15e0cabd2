"""Reads the reply of a chat model. A reply is hostile: every type is checked, and what is quoted is cut."""

import json
import math
import re
from typing import Any, TypeGuard

from kdc.common.errors import printable
from kdc.tools.label.source import Unusable

Json = dict[str, Any]

_MOST_CHARACTERS = 20_000  # of an answer, without reasoning
_MOST_ITEMS = 100  # of lists; the API gives 20 candidates
_MOST_QUOTED = 200  # characters
_AROUND = " \t\r\n\"'`\u201c\u201d\u2018\u2019«»"  # white space, and several languages' quotes
_FENCE = re.compile(r"```\w*\n(.*)```", re.DOTALL)


class Final(Unusable):
    """Asking again would not help."""


def items(value: Any, *keys: str) -> list[Any]:
    """A list deep in objects, cut to 100 items; empty if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value[:_MOST_ITEMS] if isinstance(value, list) else []


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def shown(text: str) -> str:
    """A hostile text's beginning, without control characters and half surrogate pairs."""
    return printable(text[:_MOST_QUOTED].encode(errors="replace").decode())


def plain(text: str) -> str:
    """The answer without a code fence, white space, quotes, a final full stop, and case."""
    return unfenced(text).strip(_AROUND).removesuffix(".").strip(_AROUND).casefold()


def unfenced(text: str) -> str:
    fence = _FENCE.fullmatch(text.strip())
    return (fence[1] if fence else text).strip()


def content(reply: Any, *, may_be_cut: bool = False) -> str:
    """The arguments of the model's tool call, else the message's text without its reasoning.

    Args:
        may_be_cut: also read an answer that reached the token limit.

    Raises:
        Unusable: there is no answer.
    """
    first = next(iter(items(reply, "choices")), None)
    message = first.get("message") if isinstance(first, dict) else None
    if not isinstance(first, dict) or not isinstance(message, dict):
        raise Unusable("the reply has no message")
    if isinstance(refusal := message.get("refusal"), str) and refusal:
        raise Final(f"the model refused to answer: {shown(refusal)!r}")
    ended = first.get("finish_reason")
    if ended == "content_filter" or (ended == "length" and not may_be_cut):
        why = (
            "reached the limit of tokens; a higher most_output_tokens may help" if ended == "length" else "was filtered"
        )
        raise Final(f"the answer {why}")
    answer = _without_reasoning(_text(message))
    if not answer.strip():
        raise Unusable("the answer is empty")
    if len(answer) > _MOST_CHARACTERS:
        raise Unusable(f"the answer is longer than {_MOST_CHARACTERS} characters")
    return answer


def _text(message: Json) -> str:
    if calls := items(message, "tool_calls"):
        function = calls[0].get("function") if isinstance(calls[0], dict) else None
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if len(calls) > 1 or not isinstance(arguments, str):
            raise Unusable("the answer is not one tool call with arguments")
        return arguments
    if isinstance(text := message.get("content"), str):
        return text
    parts = [part for part in items(message, "content") if isinstance(part, dict) and part.get("type") == "text"]
    return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def _without_reasoning(text: str) -> str:
    """What follows the last `</think>`. Some models write only this end."""
    _, end, after = text.rpartition("</think>")
    if not end and after.lstrip().startswith("<think>"):
        raise Final("the answer is reasoning without an end")
    return after


def decoded(answer: str) -> Json:
    """Raises `Unusable` if the answer is no JSON object."""
    try:
        value = json.loads(unfenced(answer))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Unusable("the answer is no JSON object")
    return value


def candidates(reply: Any) -> dict[str, float]:
    """The probabilities of the tokens that may be the answer's first one, after white space and quotes. -9999 stands
    for a token without a probability, which is left out.

    Raises:
        Unusable: the log-probabilities cannot be true: none, only one, or ones that sum to more than 1.
    """
    tokens = items(next(iter(items(reply, "choices")), None), "logprobs", "content")
    if not tokens:
        raise (Final if items(reply, "choices") else Unusable)("the model gives no log-probabilities")
    first = next((token for token in tokens if plain(_token(token))), None)
    listed: dict[str, float] = {}
    for each in (first, *items(first, "top_logprobs")):
        token, logprob = _token(each), each.get("logprob")
        if not is_number(logprob) or not logprob <= 1e-3:
            raise Final("a log-probability is no number below 0")
        if logprob > -9000:
            listed[token] = math.exp(min(logprob, 0))
    if len(listed) < 2 or sum(listed.values()) > 1.05:
        raise Final("the log-probabilities are fewer than two, or sum to more than 1")
    return listed


def _token(value: Any) -> str:
    token = value.get("token") if isinstance(value, dict) else None
    if not isinstance(token, str):
        raise Final("a log-probability has no token")
    return token
