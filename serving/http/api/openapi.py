"""The service's OpenAPI description, at `/docs.json`: every route, its bodies, its replies and all its errors."""

import functools
from typing import Any

from kdc.common.version import __version__
from kdc.serving.http.api.tei import FUNCTIONS
from kdc.serving.http.replies import EMPTY, ERRORS

Json = dict[str, Any]

_ALWAYS = (500,)
_GUARDED = (401, 429, 503, 504, *_ALWAYS)
_INFERENCE = (400, 413, 415, 422, 424, *_GUARDED)


@functools.cache
def describe() -> Json:
    """The whole document, OpenAPI 3.0.3."""
    errors = {str(status): _reply(meaning, _json(_ref("Error"))) for status, (_, meaning) in ERRORS.items()}
    errors["429"]["headers"] = {"Retry-After": {"schema": _INTEGER | {"minimum": 1}, "description": "Seconds"}}
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "kdc",
            "version": __version__,
            "description": "Text classification. Speaks the dialects of text-embeddings-inference and of the Hub's "
            "clients, of vLLM's and OpenAI's, and the Open Inference Protocol V2. `/info` says which task is served.",
        },
        "paths": _texts_paths() | _v2_paths() | _operations_paths(),
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "responses": errors,
        },
        "security": [{}, {"token": []}],
    }


def _texts_paths() -> Json:
    """Paths of the dialects of text-embeddings-inference, the Hub's clients and BentoML's clients."""
    predict = _operation(
        "Predict",
        "Labels and scores, best first. One text or pair gives one list, a batch gives a list of lists.",
        _reply("Predictions", _json(_ref("Predictions"))) | {"headers": _COMPUTE | _ANSWERED},
        (404, *_INFERENCE),
        body={"application/json": {"schema": _ref("PredictRequest"), "examples": _EXAMPLES}},
    )
    classify = _operation(
        "Classify",
        "`texts`, as BentoML's own clients send them, has a list of labels and scores for each; `input`, as vLLM's "
        "clients do, that server's reply; `inputs` is as of `/predict`.",
        _reply("By the key of the texts", _json({"anyOf": [_ref("Predictions"), _ref("VllmReply")]}))
        | {"headers": _ANSWERED},
        (404, *_INFERENCE),
        body=_json({"anyOf": [_ref("ClassifyRequest"), _ref("VllmRequest"), _ref("PredictRequest")]}),
    )
    moderate = _operation(
        "Moderate",
        "As OpenAI's clients ask: which labels each text has, of a multi-label model; 422 for any other.",
        _reply("A result for each text", _json(_ref("Moderations"))) | {"headers": _ANSWERED},
        (404, *_INFERENCE),
        body=_json(_ref("ModerationRequest")),
    )
    home = _operation("Home", "Leads to the playground.", {"description": "To /playground"}, _ALWAYS, status=307)
    return {
        "/": {"get": home | {"tags": ["pages"]}, "post": predict | {"operationId": "predict_root"}},
        "/predict": {"post": predict},
        "/predict/{name}": {"parameters": [_NAME], "post": predict | {"operationId": "predict_by"}},
        "/classify": {"post": classify},
        "/v1/moderations": {"post": moderate},
        "/info": _get("Info", "What is served.", _GUARDED, _json(_ref("Info"))),
    }


def _v2_paths() -> Json:
    version = {"name": "version", "in": "path", "required": True, "schema": _TEXT | {"pattern": "^(1|[0-9a-f]{16})$"}}
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    infer = _operation(
        "Infer",
        "Open Inference Protocol V2. BYTES input `text` of shape [N] or [N, 1]; pairs [N, 2], or `text` and "
        "`text_pair`. Binary tensors follow the JSON, whose length is in Inference-Header-Content-Length.",
        _reply("Outputs `label` (BYTES) and `probabilities` (FP32).", _json(_ref("InferReply")) | binary)
        | {"headers": _ANSWERED},
        tuple({404, *_INFERENCE} - {415}),
        body=_json(_ref("InferRequest")) | binary,
    )
    of_a_model = {
        "": _get("Model", "The model's inputs and outputs.", (404, *_GUARDED)),
        "/ready": _get("Model ready", "Whether the model takes requests.", (404, *_GUARDED)),
        "/infer": {"post": infer},
    }
    paths = {
        "/v2": _get("Server", "The server's name and extensions.", _GUARDED),
        "/v2/health/live": _get("Live", "Whether the process lives.", _ALWAYS),
        "/v2/health/ready": _get("Ready", "Whether requests are taken.", (503, *_ALWAYS)),
    }
    for base, suffix, parameters in (("", "", [_NAME]), ("/versions/{version}", "_version", [_NAME, version])):
        for end, methods in of_a_model.items():
            ((method, operation),) = methods.items()
            named = {"operationId": operation["operationId"] + suffix, "tags": ["Open Inference Protocol"]}
            paths["/v2/models/{name}" + base + end] = {"parameters": parameters, method: operation | named}
    return paths


def _operations_paths() -> Json:
    plain, page = {"text/plain": {"schema": _TEXT}}, {"text/html": {"schema": _TEXT}}
    paths = {
        "/health": _get("Health", "Whether requests are taken.", (503, *_ALWAYS)),
        "/livez": _get("Livez", "Whether the process lives.", _ALWAYS, plain, "Yes"),
        "/healthz": _get("Healthz", "The same.", _ALWAYS, plain, "Yes"),
        "/readyz": _get("Readyz", "Whether requests are taken.", _ALWAYS, plain, "Yes"),
        "/metrics": _get("Metrics", "Prometheus metrics of all workers.", _ALWAYS, plain, "Text format"),
        "/playground": _get("Playground", "A page to try the model on.", _ALWAYS, page, "A page"),
        "/docs": _get("Docs", "This description, to browse.", _ALWAYS, page, "A page"),
        "/docs.json": _get("Description", "This description.", _ALWAYS),
    }
    paths["/readyz"]["get"]["responses"]["503"] = _reply("Not yet, or no longer", plain)
    return paths


def _operation(
    name: str, text: str, reply: Json, errors: tuple[int, ...], *, body: Json | None = None, status: int = 200
) -> Json:
    """An operation: its reply and status when all goes well, the statuses of its errors, its body by media type."""
    operation: Json = {
        "summary": name,
        "description": text,
        "operationId": name.lower().replace(" ", "_"),
        "tags": ["inference"],
        "responses": {str(status): reply}
        | {str(error): {"$ref": f"#/components/responses/{error}"} for error in sorted(errors)},
    }
    return operation if body is None else operation | {"requestBody": {"required": True, "content": body}}


def _get(name: str, text: str, errors: tuple[int, ...], content: Json | None = None, reply: str = "") -> Json:
    """A path with the method GET alone; by default it replies a JSON object, which is called as the operation."""
    content = _json(_object()) if content is None else content
    tag = "pages" if "text/html" in content else "operations"
    return {"get": _operation(name, text, _reply(reply or name, content), errors) | {"tags": [tag]}}


def _reply(description: str, content: Json) -> Json:
    return {"description": description, "content": content}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _array(items: Json, **limits: int) -> Json:
    return {"type": "array", "items": items, **limits}


def _object(required: Json | None = None, optional: Json | None = None, **more: Any) -> Json:
    """An object of some required and some optional properties; with neither, any object."""
    properties = (required or {}) | (optional or {})
    schema = {"type": "object", **more} | ({"properties": properties} if properties else {})
    return schema | ({"required": list(required)} if required else {})


_TEXT, _INTEGER = {"type": "string"}, {"type": "integer"}
_NAME = {"name": "name", "in": "path", "required": True, "schema": _TEXT | {"minLength": 1}}
_BATCH_ROW = {"anyOf": [_TEXT, _array(_TEXT, minItems=1, maxItems=2)]}
_COMPUTE = {
    "x-compute-tokens": {"schema": _INTEGER, "description": "Tokens of all texts, after the cut"},
    "x-truncated-texts": {"schema": _INTEGER, "description": "Texts that were cut"},
    "x-model": {"schema": _TEXT, "description": "Name of the model that answered"},
}
_ANSWERED = {
    "x-artifact": {"schema": _TEXT, "description": "Which artifact answered: 16 digits of its SHA-256"},
    "x-abstained-texts": {"schema": _INTEGER, "description": "Texts that are not answered, where a model abstains"},
}
_EXAMPLES = {
    "text": {"summary": "one text", "value": {"inputs": "a gripping film"}},
    "pair": {"summary": "one pair", "value": {"inputs": ["Who wrote it?", "It was written in 1911."]}},
    "batch": {"summary": "a batch", "value": {"inputs": [["a gripping film"], ["dull"]]}},
    "hub": {"summary": "the Hub's client", "value": {"inputs": "a gripping film", "parameters": {"top_k": 1}}},
}


def _schemas() -> Json:
    flag = {"type": "boolean", "nullable": True}  # null is as good as leaving out: clients send their defaults
    sides = _TEXT | {"nullable": True, "enum": ["left", "right", "Left", "Right", None]}
    options = {
        "truncate": flag,
        "truncation_direction": sides | {"description": "Which side is cut"},
        "raw_scores": flag | {"description": "Logits in place of scores"},
        "top_k": _INTEGER | {"minimum": 1, "nullable": True},
        "decision": flag
        | {
            "description": 'Each row as {"decision", "scores"}: the label that it gets, or the labels; with "set", the '
            "labels of which one is the true one, where the model has sets"
        },
        "function_to_apply": _TEXT | {"nullable": True, "enum": [*FUNCTIONS, None]},
    }
    parameters = _object(optional=options | {"truncation": flag}, additionalProperties=False, nullable=True)
    inputs = {
        "description": '"a" or ["a"]: one text; ["a", "b"]: a pair; [["a"], ["b", "c"]]: a batch',
        "anyOf": [*_BATCH_ROW["anyOf"], _array(_BATCH_ROW, minItems=1)],
    }
    model = {"model": _TEXT | {"nullable": True}}
    vllm = {"id": _TEXT, "object": _TEXT, "created": _INTEGER, "model": _TEXT}
    classified = _object(
        {"index": _INTEGER, "label": _TEXT, "probs": _array({"type": "number"}), "num_classes": _INTEGER}
    )
    by_label = {"categories": {"type": "boolean"}, "category_scores": {"type": "number"}}
    by_label |= {"category_applied_input_types": _array(_TEXT)}
    moderated = {name: {"type": "object", "additionalProperties": each} for name, each in by_label.items()}
    moderated["flagged"] = {"type": "boolean"}
    tensor = {
        "name": _TEXT | {"enum": ["text", "text_pair"]},
        "shape": _array(_INTEGER | {"minimum": 1}, minItems=1, maxItems=2),
        "datatype": _TEXT | {"enum": ["BYTES"]},
    }
    data = {"data": _array({"anyOf": [_TEXT, _array(_TEXT)]}), "parameters": _object()}
    info = {
        "model_id": _TEXT,
        "task": _TEXT,
        "kind": _TEXT | {"enum": ["classification", "multilabel", "regression"]},
        "columns": _array(_TEXT, minItems=1, maxItems=2),
        "labels": _array(_TEXT),
        "models": _array(_TEXT, minItems=1),
        "max_input_length": _INTEGER,
    }
    kinds = _TEXT | {"enum": sorted({EMPTY, *(kind for kind, _ in ERRORS.values())})}
    of_openai = _object({"message": _TEXT, "type": kinds})  # under /v1/
    outputs = {"outputs": _array(_object())}
    return {
        "Error": _object({"error": {"anyOf": [_TEXT, of_openai]}, "error_type": kinds}),
        "Prediction": _array(_object({"label": _TEXT, "score": {"type": "number"}})),
        "Decision": _object(
            {"decision": {"anyOf": [_TEXT, _array(_TEXT)]}, "scores": _ref("Prediction")}, {"set": _array(_TEXT)}
        ),
        "Predictions": {
            "anyOf": [
                _ref("Prediction"),
                _array(_ref("Prediction")),
                _ref("Decision"),
                _array(_ref("Decision")),
            ]
        },
        "PredictRequest": _object(
            {"inputs": inputs}, {"parameters": parameters} | model | options, additionalProperties=False
        ),
        "ClassifyRequest": _object({"texts": _array(_BATCH_ROW, minItems=1)}, model, additionalProperties=False),
        "VllmRequest": _object(
            {"input": {"anyOf": [_TEXT, _array(_BATCH_ROW, minItems=1)]}},
            model | {"use_activation": flag, "raw_scores": flag, "user": {}, "request_id": {}, "priority": {}},
            additionalProperties=False,
        ),
        "VllmReply": _object(vllm | {"data": _array(classified), "usage": _object()}),
        "ModerationRequest": _object(
            {"input": {"anyOf": [_TEXT, _array(_TEXT, minItems=1)]}}, model, additionalProperties=False
        ),
        "Moderations": _object({"id": _TEXT, "model": _TEXT, "results": _array(_object(moderated))}),
        "Info": _object(
            info,
            {
                "variant": _TEXT,
                "provider": _TEXT,
                "thresholds": _object(),
                "answers_from": {"type": ["number", "null"]},
                "windows": {"type": ["object", "null"]},
                "sets": {"type": ["object", "null"]},
                "second_model": {"type": ["string", "null"]},
            },
        ),
        "InferRequest": _object(
            {"inputs": _array(_object(tensor, data), minItems=1)}, {"id": _TEXT, "parameters": _object()} | outputs
        ),
        "InferReply": _object({"model_name": _TEXT} | outputs, {"model_version": _TEXT, "id": _TEXT}),
    }
