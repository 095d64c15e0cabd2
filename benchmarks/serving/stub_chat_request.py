"""Which text and labels a chat asks the stub for. Imports nothing of kdc.

Labels are in a JSON schema, a tool's parameters, or lines `CODE: LABEL - DESCRIPTION` of the system message. The text
is the last user message, or its part in `<text>...</text>` or from `BEGIN N` to `END N`, or the longest key of the
table in it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.serving.stub_answers import Json, Table, WrongBody, known_probabilities

_NOUL = {"no": "false", "yes": "true"}
_DELIMITED = re.compile(r"<text>\n?(.*?)\n?</text>|^BEGIN (\S+)\n(.*)\nEND \2$", re.DOTALL | re.MULTILINE)
_OPTION = re.compile(r"^[ \t]*(?:[-*] )?([A-Z]{1,2}|[a-z]|\d{1,4})[ \t]*[:=][ \t]*(\S.*?)[ \t]*$", re.MULTILINE)


class WrongChat(WrongBody):
    """The request is refused with 400. The second argument is the key at fault, or None."""


@dataclass(frozen=True)
class Request:
    text: str
    is_corrected: bool  # messages follow the text's message
    properties: Json | None  # of the answer's JSON object; None: a code alone
    tool: str | None
    given: dict[str, float]  # probabilities by code or label
    first: str  # the first option


def understood(body: Json, table: Table) -> Request:
    """Read a request of the right form.

    Raises:
        WrongChat: it lists no labels, or its strict schema is not strict.
        AttributeError, IndexError, KeyError, TypeError, ValueError: its form is wrong.
    """
    messages = body["messages"]
    users = [(place, content(message)) for place, message in enumerate(messages) if message["role"] == "user"]
    place, text = _text(users, table)
    system = "\n".join(content(message) for message in messages if message["role"] in ("system", "developer"))
    listed = _listed(system, table.get(text, {}))
    tool, properties = _schema(body)
    if properties is None and "JSON" in system:
        properties = _in_words(system, listed)
    values = list(listed) if properties is None else _values(properties)
    if not values:
        raise WrongChat("stub: the request lists no labels", "messages")
    labels = [listed.get(value, value) for value in values]
    first = next((label for label in listed.values() if label in labels), labels[0])
    given = dict(zip(values, _probabilities(text, labels, table), strict=True))
    return Request(text, place != users[-1][0], properties, tool, given, values[labels.index(first)])


def content(message: Json) -> str:
    given = message.get("content") or ""
    return given if isinstance(given, str) else "".join(part.get("text", "") for part in given)


def _text(users: list[tuple[int, str]], table: Table) -> tuple[int, str]:
    """The place and text of the message to label. Messages after it are corrections."""
    earliest, (place, text) = 0, users[-1]
    for number, written in reversed(users):
        if found := list(_DELIMITED.finditer(written)):
            earliest, place, text = number, number, found[-1][1] or found[-1][3] or ""
            break
    if text in table:
        return place, text
    for number, written in reversed(users):
        if number >= earliest and (keys := [key for key in table if key and key in written]):
            return number, max(keys, key=len)
    return place, text


def _listed(system: str, row: Mapping[str, float]) -> dict[str, str]:
    """Labels by code, in order. Only the table's labels may contain the marks that end a label."""
    listed: dict[str, str] = {}
    for code, rest in _OPTION.findall(system):
        known = [label for label in row if rest == label or rest.startswith((f"{label} - ", f"{label}: "))]
        listed.setdefault(code, max(known, key=len) if known else re.split(" - |: ", rest, maxsplit=1)[0])
    return listed


def _schema(body: Json) -> tuple[str | None, Json | None]:
    tools = [each["function"] for each in body.get("tools") or ()]
    choice, wanted = body.get("tool_choice"), body.get("response_format") or {}
    if tools and choice != "none":
        name = choice["function"]["name"] if isinstance(choice, dict) else tools[0]["name"]
        (form,) = (each for each in tools if each["name"] == name)
        schema, key = form["parameters"], "tools"
    elif wanted.get("type") == "json_schema":
        name, form = None, wanted["json_schema"]
        schema, key = form["schema"], "response_format"
    else:
        return None, None
    properties: Json = schema["properties"]
    is_closed = schema.get("additionalProperties") is False and set(schema.get("required", ())) == properties.keys()
    if form.get("strict") and not is_closed:
        raise WrongChat("a strict schema requires all its properties, and allows no others", key)
    return name, properties


def _in_words(system: str, listed: Mapping[str, str]) -> Json:
    if '"label"' in system:
        return {"label": {"enum": list(listed.values())}}
    return {code: {"type": "number"} for code in listed}


def _values(properties: Json) -> list[str]:
    enums = [each["enum"] for each in properties.values() if "enum" in each]
    return enums[0] if enums else [name for name, each in properties.items() if each.get("type") == "number"]


def _probabilities(text: str, labels: list[str], table: Table) -> list[float]:
    is_noul = sorted(labels) == sorted(_NOUL) and not _NOUL.keys() <= table.get(text, {}).keys()
    keys = [_NOUL[label] for label in labels] if is_noul else labels
    found = known_probabilities(text, {"labels": sorted(keys)}, sorted(keys), table)
    by_key = dict(zip(sorted(keys), found, strict=True))
    return [by_key[key] / sum(found) for key in keys]
