"""The service's OpenAPI description, at `/docs.json`: every route, its bodies, its replies and all its errors."""

from __future__ import annotations

from typing import Any

from kdc.common.version import __version__
from kdc.serving.http.api.errors import TYPES
from kdc.serving.http.api.tei import FUNCTIONS

Json = dict[str, Any]

_MEANINGS = {
    400: "Empty or malformed JSON, or a binary body that does not fit its header.",
    401: "The bearer token is missing or wrong.",
    404: "No such model, version or route.",
    413: "The body is too large.",
    415: "The body's type is not the one that the route takes.",
    422: "Not what the task takes, too many texts, or a text that is too long.",
    424: "The model failed on these texts.",
    429: "Overloaded: try again after the seconds in Retry-After.",
    500: "The service failed; its log names the place.",
    503: "Starting or draining: send it to another instance.",
    504: "No answer within the time limit.",
}
_ALWAYS = (500,)
_GUARDED = (401, 429, 503, 504, *_ALWAYS)
_INFERENCE = (400, 413, 415, 422, 424, *_GUARDED)


def describe() -> Json:
    """The whole document, OpenAPI 3.0.3."""
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "kdc",
            "version": __version__,
            "description": "Text classification. Speaks the dialects of text-embeddings-inference and of the Hub's "
            "clients, and the Open Inference Protocol V2. `/info` says which task is served.",
        },
        "paths": _tei() | _v2() | _operations(),
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "responses": {str(status): _error(status) for status in _MEANINGS},
        },
        "security": [{}, {"token": []}],
    }


def _tei() -> Json:
    predict = _operation(
        "Predict",
        "Labels and scores, best first. One text or pair gives one list, a batch gives a list of lists.",
        {"200": _json_reply("Predictions", {"$ref": "#/components/schemas/Predictions"}, headers=_COMPUTE)},
        _INFERENCE,
        body={"application/json": {"schema": {"$ref": "#/components/schemas/PredictRequest"}, "examples": _EXAMPLES}},
    )
    classify = _operation(
        "Classify",
        "What BentoML's own clients call: `client.classify(texts=[...])`.",
        {"200": _json_reply("A list of labels and scores for each text", _array(_ref("Prediction")))},
        (404, *_INFERENCE),
        body={"application/json": {"schema": _ref("ClassifyRequest")}},
    )
    home = _operation("Home", "Leads to the playground.", {"307": {"description": "To /playground"}}, _ALWAYS)
    return {
        "/": {"get": home | {"tags": ["pages"]}, "post": predict | {"operationId": "predict_root"}},
        "/predict": {"post": predict},
        "/classify": {"post": classify},
        "/info": {"get": _get("Info", "What is served.", _ref("Info"), _GUARDED)},
    }


def _v2() -> Json:
    model = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    version = {"name": "version", "in": "path", "required": True, "schema": {"type": "string", "enum": ["1"]}}
    infer = _operation(
        "Infer",
        "Open Inference Protocol V2. BYTES input `text` of shape [N] or [N, 1]; pairs [N, 2], or `text` and "
        "`text_pair`. Binary tensors follow the JSON, whose length is in Inference-Header-Content-Length.",
        {
            "200": {
                "description": "Outputs `label` (BYTES) and `probabilities` (FP32).",
                "content": {
                    "application/json": {"schema": _ref("InferReply")},
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                },
            }
        },
        (404, *(status for status in _INFERENCE if status != 415)),
        body={
            "application/json": {"schema": _ref("InferRequest")},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    )
    paths: Json = {
        "/v2": {"get": _get("Server", "The server's name and extensions.", _object(), _GUARDED)},
        "/v2/health/live": {"get": _get("Live", "Whether the process lives.", _object(), _ALWAYS)},
        "/v2/health/ready": {"get": _get("Ready", "Whether requests are taken.", _object(), (503, *_ALWAYS))},
    }
    for base, parameters in (("", [model]), ("/versions/{version}", [model, version])):
        suffix = "_version" if base else ""
        path = "/v2/models/{name}" + base
        metadata = _get("Model", "The model's inputs and outputs.", _object(), (404, *_GUARDED))
        is_ready = _get("Model ready", "Whether the model takes requests.", _object(), (404, *_GUARDED))
        for place, method, operation in (
            (path, "get", metadata),
            (f"{path}/ready", "get", is_ready),
            (f"{path}/infer", "post", infer),
        ):
            named = operation | {"operationId": operation["operationId"] + suffix, "tags": ["Open Inference Protocol"]}
            paths[place] = {"parameters": parameters, method: named}
    return paths


def _operations() -> Json:
    text, page = {"schema": {"type": "string"}}, {"text/html": {"schema": {"type": "string"}}}
    plain = {"200": {"description": "Yes", "content": {"text/plain": text}}}
    not_ready = {"503": {"description": "Not yet, or no longer", "content": {"text/plain": text}}}

    def html(name: str, summary: str) -> Json:
        return _operation(name, summary, {"200": {"description": "A page", "content": page}}, _ALWAYS, tag="pages")

    return {
        "/health": {"get": _get("Health", "Whether requests are taken.", _object(), (503, *_ALWAYS))},
        "/livez": {"get": _operation("Livez", "BentoML's liveness.", plain, (), tag="operations")},
        "/readyz": {"get": _operation("Readyz", "BentoML's readiness.", plain | not_ready, (), tag="operations")},
        "/metrics": {
            "get": _operation(
                "Metrics",
                "Prometheus metrics of all workers.",
                {"200": {"description": "Text format", "content": {"text/plain": text}}},
                _ALWAYS,
                tag="operations",
            )
        },
        "/playground": {"get": html("Playground", "A page to try the model on.")},
        "/docs": {"get": html("Docs", "This description, to browse.")},
        "/docs.json": {"get": _get("Description", "This description.", _object(), _ALWAYS)},
    }


def _operation(
    name: str, text: str, replies: Json, errors: tuple[int, ...], *, body: Json | None = None, tag: str = "inference"
) -> Json:
    responses = replies | {str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(set(errors))}
    operation: Json = {
        "summary": name,
        "description": text,
        "operationId": name.lower().replace(" ", "_"),
        "tags": [tag],
        "responses": responses,
    }
    if body is not None:
        operation["requestBody"] = {"required": True, "content": body}
    return operation


def _get(name: str, text: str, schema: Json, errors: tuple[int, ...]) -> Json:
    return _operation(name, text, {"200": _json_reply(name, schema)}, errors, tag="operations")


def _error(status: int) -> Json:
    reply = _json_reply(_MEANINGS[status], _ref("Error"))
    if status == 429:
        reply["headers"] = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds"}}
    return reply


def _json_reply(description: str, schema: Json, headers: Json | None = None) -> Json:
    reply: Json = {"description": description, "content": {"application/json": {"schema": schema}}}
    return reply | ({"headers": headers} if headers else {})


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _array(items: Json, **limits: int) -> Json:
    return {"type": "array", "items": items, **limits}


def _object(properties: Json | None = None, required: list[str] | None = None, **more: Any) -> Json:
    schema: Json = {"type": "object", **more}
    if properties is not None:
        schema["properties"] = properties
    if required:
        schema["required"] = required
    return schema


_TEXT = {"type": "string"}
_BATCH_ROW = {"anyOf": [_TEXT, _array(_TEXT, minItems=1, maxItems=2)]}
_COMPUTE = {
    "x-compute-tokens": {"schema": {"type": "integer"}, "description": "Tokens of all texts, after the cut"},
    "x-truncated-texts": {"schema": {"type": "integer"}, "description": "Texts that were cut"},
    "x-model": {"schema": {"type": "string"}, "description": "Name of the model that answered"},
}
_EXAMPLES = {
    "text": {"summary": "one text", "value": {"inputs": "a gripping film"}},
    "pair": {"summary": "one pair", "value": {"inputs": ["Who wrote it?", "It was written in 1911."]}},
    "batch": {"summary": "a batch", "value": {"inputs": [["a gripping film"], ["dull"]]}},
    "hub": {
        "summary": "the Hub's client",
        "value": {"inputs": "a gripping film", "parameters": {"top_k": 1}},
    },
}


def _schemas() -> Json:
    # null is as good as leaving out: clients send their defaults.
    flag = {"type": "boolean", "nullable": True}
    options = {
        "truncate": flag,
        "truncation_direction": {
            "type": "string",
            "nullable": True,
            "enum": ["left", "right", "Left", "Right", None],
            "description": "Which side is cut",
        },
        "raw_scores": flag | {"description": "Logits in place of scores"},
        "top_k": {"type": "integer", "minimum": 1, "nullable": True},
        "function_to_apply": {"type": "string", "nullable": True, "enum": [*FUNCTIONS, None]},
    }
    tensor = _object(
        {
            "name": {"type": "string", "enum": ["text", "text_pair"]},
            "shape": _array({"type": "integer", "minimum": 1}, minItems=1, maxItems=2),
            "datatype": {"type": "string", "enum": ["BYTES"]},
            "data": _array({"anyOf": [_TEXT, _array(_TEXT)]}),
            "parameters": _object(),
        },
        ["name", "shape", "datatype"],
    )
    return {
        "Error": _object(
            {"error": _TEXT, "error_type": {"type": "string", "enum": sorted(set(TYPES.values()))}},
            ["error", "error_type"],
        ),
        "Prediction": _array(_object({"label": _TEXT, "score": {"type": "number"}}, ["label", "score"])),
        "Predictions": {"anyOf": [_ref("Prediction"), _array(_ref("Prediction"))]},
        "PredictRequest": _object(
            {
                "inputs": {
                    "description": '"a" or ["a"]: one text; ["a", "b"]: a pair; [["a"], ["b", "c"]]: a batch',
                    "anyOf": [_TEXT, _array(_TEXT, minItems=1, maxItems=2), _array(_BATCH_ROW, minItems=1)],
                },
                "parameters": _object(options | {"truncation": flag}, additionalProperties=False, nullable=True),
                **options,
            },
            ["inputs"],
            additionalProperties=False,
        ),
        "ClassifyRequest": _object(
            {"texts": _array(_BATCH_ROW, minItems=1), "model": {"type": "string", "nullable": True}},
            ["texts"],
            additionalProperties=False,
        ),
        "Info": _object(
            {
                "model_id": _TEXT,
                "task": _TEXT,
                "kind": {"type": "string", "enum": ["classification", "multilabel", "regression"]},
                "columns": _array(_TEXT, minItems=1, maxItems=2),
                "labels": _array(_TEXT),
                "models": _array(_TEXT, minItems=1),
                "max_input_length": {"type": "integer"},
                "variant": _TEXT,
                "provider": _TEXT,
            },
            ["model_id", "task", "kind", "columns", "labels", "models", "max_input_length"],
        ),
        "InferRequest": _object(
            {"id": _TEXT, "inputs": _array(tensor, minItems=1), "outputs": _array(_object()), "parameters": _object()},
            ["inputs"],
        ),
        "InferReply": _object(
            {"model_name": _TEXT, "model_version": _TEXT, "id": _TEXT, "outputs": _array(_object())},
            ["model_name", "outputs"],
        ),
    }
