"""The OpenAPI document."""

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from kdc.artifact.task_kinds import KINDS
from kdc.common.version import __version__
from kdc.serving.http.replies import EMPTY, ERRORS

Json = dict[str, Any]
Handler = Callable[[Request], Awaitable[Response]]

JSON, PLAIN, PAGE = "application/json", "text/plain", "text/html"


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A route. Its description is the handler's docstring."""

    path: str
    handler: Handler
    name: str  # summary and operationId
    errors: tuple[int, ...]  # statuses
    method: str = "GET"
    tag: str = "operations"
    media: str = JSON  # of the reply; "" for no content
    reply: tuple[str, ...] = ()  # names of schemas; empty: any object
    bodies: tuple[type[BaseModel], ...] = ()
    is_binary: bool = False
    headers: Json = field(default_factory=dict)  # of the reply
    status: int = 200


def document(operations: Sequence[Operation]) -> Json:
    paths: Json = {}
    for operation in operations:
        parameters = [_PARAMETERS[name] for name in re.findall(r"{(\w+)}", operation.path)]
        path = paths.setdefault(operation.path, {"parameters": parameters} if parameters else {})
        path[operation.method.lower()] = _described(operation)
    bodies = {body for operation in operations for body in operation.bodies}
    _, schemas = models_json_schema([(body, "validation") for body in bodies], ref_template=_REF)
    errors = {str(status): _content(meaning, JSON, _any(["Error"])) for status, (_, meaning) in ERRORS.items()}
    errors["429"]["headers"] = {"Retry-After": {"schema": _INTEGER | {"minimum": 1}, "description": "Seconds"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kdc",
            "version": __version__,
            "description": "Text classification. Speaks the dialects of text-embeddings-inference and of the Hub's "
            "clients, of vLLM's, OpenAI's and TypeSafe's, and the Open Inference Protocol V2. `/info` says which task "
            "is served.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"] | _REPLIES,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "responses": errors,
        },
        "security": [{}, {"token": []}],
    }


def _described(operation: Operation) -> Json:
    schema = _any(operation.reply) if operation.media == JSON else _TEXT
    reply = _content(operation.name, operation.media, schema) | {"headers": operation.headers}
    responses: Json = {str(error): {"$ref": f"#/components/responses/{error}"} for error in operation.errors}
    if operation.media == PLAIN and "503" in responses:
        responses["503"] = _content("Not yet, or no longer", PLAIN, _TEXT)
    described: Json = {
        "summary": operation.name,
        "description": inspect.getdoc(operation.handler),
        "operationId": operation.name.lower().replace(" ", "_"),
        "tags": [operation.tag],
        "responses": {str(operation.status): reply} | responses,
    }
    if operation.bodies:
        body = _content("", JSON, _any([model.__name__ for model in operation.bodies]))
        described["requestBody"] = {"required": True, "content": body["content"]}
    if operation.is_binary:
        for content in (reply["content"], described["requestBody"]["content"]):
            content["application/octet-stream"] = {"schema": _TEXT | {"format": "binary"}}
    return described


def _content(description: str, media: str, schema: Json) -> Json:
    return {"description": description, "content": {media: {"schema": schema}} if media else {}}


def _any(names: Iterable[str]) -> Json:
    references = [{"$ref": _REF.format(model=name)} for name in names]
    return {"anyOf": references} if references else _ANY


def _array(items: Json, **limits: int) -> Json:
    return {"type": "array", "items": items, **limits}


def _object(optional: Json | None = None, /, **properties: Json) -> Json:
    return {"type": "object", "properties": properties | (optional or {}), "required": list(properties)}


def _by_label(values: Json) -> Json:
    return {"type": "object", "additionalProperties": values}


_REF = "#/components/schemas/{model}"
_TEXT, _INTEGER, _NUMBER, _FLAG = ({"type": name} for name in ("string", "integer", "number", "boolean"))
_ANY: Json = {"type": "object"}
_PARAMETERS = {
    "name": {"name": "name", "in": "path", "required": True, "schema": _TEXT | {"minLength": 1}},
    "version": {"name": "version", "in": "path", "required": True, "schema": _TEXT | {"pattern": "^(1|[0-9a-f]{16})$"}},
}
COMPUTE = {
    "x-compute-tokens": {"schema": _INTEGER, "description": "Tokens of all texts, after the cut"},
    "x-truncated-texts": {"schema": _INTEGER, "description": "Texts that were cut"},
    "x-model": {"schema": _TEXT, "description": "Name of the model that answered"},
}
ANSWERED = {
    "x-artifact": {"schema": _TEXT, "description": "Which artifact answered: 16 digits of its SHA-256"},
    "x-abstained-texts": {"schema": _INTEGER, "description": "Texts that are not answered, if the model abstains"},
}
SOURCED = {"x-kdc-source": {"schema": _TEXT, "description": "local, upstream or mixed, if there is an upstream"}}
_ERROR_TYPE = _TEXT | {"enum": sorted({EMPTY, *(kind for kind, _ in ERRORS.values())})}
_MESSAGE = {"anyOf": [_TEXT, _object(message=_TEXT, type=_ERROR_TYPE)]}  # an object under /v1/
_SCORES = _array(_object(label=_TEXT, score=_NUMBER))
_DECISION = _object({"set": _array(_TEXT)}, decision={"anyOf": [_TEXT, _array(_TEXT)]}, scores=_SCORES)
_CLASSIFIED = _object(index=_INTEGER, label=_TEXT, probs=_array(_NUMBER), num_classes=_INTEGER)
_MODERATED = _object(
    flagged=_FLAG,
    categories=_by_label(_FLAG),
    category_scores=_by_label(_NUMBER),
    category_applied_input_types=_by_label(_array(_TEXT)),
)
# Of a decision: a noul (predicate), a choice, a score.
_MEASURED = {"confidence": _NUMBER, "x_abstained": _FLAG, "x_source": _TEXT, "x_below_threshold": _FLAG}
_SYSTEM_ONE = {
    "anyOf": [
        _object(_MEASURED, type=_TEXT, noul=_NUMBER),
        _object(_MEASURED, type=_TEXT, choice=_TEXT, probabilities=_by_label(_NUMBER)),
        _object(_MEASURED, type=_TEXT, score=_NUMBER, legend=_ANY, probabilities=_by_label(_NUMBER)),
    ]
}
_NAME = {"type": ["string", "null"]}
_DECIDED = {
    "anyOf": [
        _object(_MEASURED, type=_TEXT, name=_NAME, probability=_NUMBER),
        _object(_MEASURED, type=_TEXT, name=_NAME, choice={"type": ["string", "boolean"]}, probabilities=_array(_ANY)),
        _object(_MEASURED, type=_TEXT, name=_NAME, score=_NUMBER, probabilities=_array(_ANY)),
    ]
}
_USAGE = _object(input_tokens=_INTEGER, output_tokens=_INTEGER)
_WRONG = _object(loc=_array({"type": ["string", "integer"]}), msg=_TEXT, type=_TEXT)
_DETAIL = {"anyOf": [_array(_WRONG), _object(error_type=_TEXT, message=_TEXT)]}  # of System One
_INFO = _object(
    model_id=_TEXT,
    task=_TEXT,
    kind=_TEXT | {"enum": list(KINDS)},
    columns=_array(_TEXT, minItems=1, maxItems=2),
    labels=_array(_TEXT),
    questions=_array(_TEXT),
    models=_array(_TEXT, minItems=1),
    max_input_length=_INTEGER,
    variant=_TEXT,
    provider=_TEXT,
    thresholds=_ANY,
    answers_from={"type": ["number", "null"]},
    windows={"type": ["object", "null"]},
    sets={"type": ["object", "null"]},
    second_model={"type": ["string", "null"]},
)
_REPLIES = {
    "Error": {"anyOf": [_object(error=_MESSAGE, error_type=_ERROR_TYPE), _object(detail=_DETAIL)]},
    "Predictions": {"anyOf": [_SCORES, _array(_SCORES), _DECISION, _array(_DECISION)]},
    "VllmReply": _object(id=_TEXT, object=_TEXT, created=_INTEGER, model=_TEXT, data=_array(_CLASSIFIED), usage=_ANY),
    "Moderations": _object(id=_TEXT, model=_TEXT, results=_array(_MODERATED)),
    "SystemOne": _object(model=_TEXT, answers=_by_label(_SYSTEM_ONE), usage=_USAGE),
    "Decision": _object(model=_TEXT, answers=_array(_DECIDED), usage=_USAGE),
    "Models": _object(
        object=_TEXT,
        data=_array(_object(id=_TEXT, object=_TEXT, created=_INTEGER, owned_by=_TEXT)),
        models=_array(_object(name=_TEXT, description=_TEXT, release_date=_TEXT)),
    ),
    "Info": _INFO,
    "InferReply": _object({"id": _TEXT}, model_name=_TEXT, model_version=_TEXT, outputs=_array(_ANY)),
}
