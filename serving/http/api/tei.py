"""The dialects of text-embeddings-inference and of the Hub's clients: `/`, `/predict`, `/info` and `/health`.

| `inputs` | meaning | reply |
|---|---|---|
| "a" or ["a"] | one text | [{"label", "score"}, ...], best first |
| ["a", "b"] | one pair | the same |
| [["a"], ["b", "c"]] | a batch | a list of those |
| any, with `parameters` | what huggingface_hub's clients send | a list of those, also for one row |
| any, with `decision: true` | its label or "abstained", too | {"decision", "scores"} for each list of scores |
| the same, of a model with sets | its set of labels, too | {"decision", "scores", "set"} |
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from kdc.artifact.manifest import Kind
from kdc.common.version import __version__
from kdc.serving.engine.engine import Engine, Text, activate
from kdc.serving.http.api.asking import ask, model_asked, model_named, read_json, require_ready, within_limits
from kdc.serving.http.model import Model
from kdc.serving.http.replies import ApiError, JsonResponse, written
from kdc.serving.http.settings import ServeSettings

FUNCTIONS: dict[str, Kind] = {"softmax": "classification", "sigmoid": "multilabel", "none": "regression"}
_MANY_LABELS, _FEW_OF = 256, 16  # of so many labels one in sixteen, or fewer, are found without sorting all of them
_SIDES = {"left": "left", "right": "right"}
_OPTIONS = {"top_k", "function_to_apply", "truncate", "truncation_direction", "raw_scores", "decision"}
_KEYS, _PARAMETERS = {"inputs", "model", "parameters"} | _OPTIONS, {"truncation"} | _OPTIONS


@dataclass(frozen=True, slots=True)
class Question:
    """A request's body, checked."""

    rows: list[Text]  # texts or pairs
    batch: bool  # whether the reply is a list of rows
    truncate: bool  # whether rows that are too long are cut
    side: str | None  # the side to cut, "left" or "right"; None for the artifact's own
    function: Kind | None  # the kind of task whose function makes scores; None: the task's own; "regression": logits
    top_k: int | None  # most labels a row; None for all
    decision: bool  # whether the reply tells what label a row gets


async def predict(request: Request) -> Response:
    """`POST /`, `POST /predict` and `POST /predict/NAME`."""
    if "name" in request.path_params:
        model_named(request, request.path_params["name"])  # 404 before the body is read
    return await answer(request, *asked(request, await read_json(request)))


def asked(request: Request, body: Any) -> tuple[Question, Model]:
    """What a body with `inputs` asks, and of which model: all that is kept of it while the request waits.

    Raises:
        ApiError: 404, there is no such model; 422, with what is wrong.
    """
    question = understand(body, request.app.state.settings)
    model = model_asked(request, body)  # only now: a reload may have replaced it while the body was read
    if question.decision and not model.engine.labels:
        raise ApiError(422, "a regression has no labels to decide by; send no `decision`")
    return question, model


async def answer(request: Request, question: Question, model: Model) -> Response:
    """The reply to a body with `inputs`."""
    found = await ask(
        request, model, question.rows, truncate=question.truncate, side=question.side, top_k=question.top_k
    )

    def values(rows: slice) -> list[Any]:
        return _listed(model.engine, question, found.logits[rows], found.probabilities[rows])

    reply = await written(found.logits.shape, values)
    headers = {
        "x-compute-tokens": str(sum(found.tokens)),
        "x-truncated-texts": str(sum(found.truncated)),
        "x-model": model.name,
    }
    return JsonResponse(reply if question.batch else reply[1:-1], headers=headers)


def _listed(engine: Engine, question: Question, logits: np.ndarray, probabilities: np.ndarray) -> list[Any]:
    """The reply's elements for some rows, of their logits and probabilities, (rows, outputs) each."""
    function = question.function
    if function is None or (engine.task.kind == "regression" and function != "regression"):
        scores = probabilities
    else:
        scores = activate(logits, function, engine.temperature)
    rows: list[Any] = labelled(engine, scores, question.top_k)
    if question.decision:
        gets = engine.decided(probabilities)
        rows = [{"decision": label, "scores": row} for label, row in zip(gets, rows, strict=True)]
        if engine.task.sets is not None:
            sets = engine.label_sets(probabilities)
            rows = [row | {"set": labels} for row, labels in zip(rows, sets, strict=True)]
    return rows


def labelled(engine: Engine, outputs: np.ndarray, top_k: int | None = None) -> list[list[dict[str, Any]]]:
    """Of outputs (rows, outputs) each row's labels and scores, the best first, at most `top_k`. A regression's number
    is called "score"."""
    names = engine.labels or ("score",)
    return [
        [{"label": names[place], "score": row[place]} for place in order]
        for row, order in zip(outputs.tolist(), _best(outputs, top_k), strict=True)
    ]


def _best(outputs: np.ndarray, most: int | None) -> list[list[int]]:
    """Places of each row's highest outputs, the best first, and equal ones in the order of the labels."""
    if most is None or outputs.shape[1] < _MANY_LABELS or most > outputs.shape[1] // _FEW_OF:
        best: list[list[int]] = np.argsort(-outputs, axis=1, kind="stable")[:, :most].tolist()
        return best
    lows = -np.partition(-outputs, most - 1, axis=1)[:, most - 1]
    best = []
    for row, low in zip(outputs, lows, strict=True):
        places = np.flatnonzero(row >= low)  # more than `most` where several equal the lowest
        best.append(places[np.argsort(-row[places], kind="stable")[:most]].tolist())
    return best


def understand(body: Any, settings: ServeSettings) -> Question:
    """Check a body of `/predict`.

    Raises:
        ApiError: 422, with what is wrong.
    """
    if not isinstance(body, dict) or "inputs" not in body:
        raise ApiError(422, 'the body has no `inputs`; send {"inputs": "a text"}')
    refuse_unknown(body, _KEYS, "the body")
    parameters = body.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise ApiError(422, "`parameters` is not an object")
    if parameters:
        refuse_unknown(parameters, _PARAMETERS, "`parameters`")
    given = body | parameters if parameters else body
    options = {name: value for name, value in given.items() if value is not None}
    inputs = body["inputs"]
    is_row = isinstance(inputs, str) or (isinstance(inputs, list) and all(isinstance(text, str) for text in inputs))
    function = _choice(options, "function_to_apply", FUNCTIONS)
    return Question(
        rows=read_batch([inputs] if is_row else inputs, settings, "inputs"),
        batch=not is_row or parameters is not None,
        truncate=flag(options, "truncate", flag(options, "truncation", settings.auto_truncate)),
        side=_choice(options, "truncation_direction", _SIDES),
        function="regression" if flag(options, "raw_scores", False) else function,
        top_k=_count(options, "top_k"),
        decision=flag(options, "decision", False),
    )


def read_batch(items: Any, settings: ServeSettings, key: str) -> list[Text]:
    """Check a batch of rows, each a text, [text] or [text, text], that stood in a body under `key`.

    Raises:
        ApiError: 422, with what is wrong.
    """
    if not isinstance(items, list) or not items:
        raise ApiError(422, f"`{key}` is not a list of texts, [text] or [text, text], or is empty")
    for place, row in enumerate(items):
        has_texts = isinstance(row, list) and len(row) in (1, 2) and all(isinstance(text, str) for text in row)
        if not has_texts and not isinstance(row, str):
            raise ApiError(
                422, f"row {place} of `{key}` is not a text, [text] or [text, text]; a batch: [[...], [...]]"
            )
    return within_limits([[row] if isinstance(row, str) else row for row in items], settings)


def refuse_unknown(options: dict[str, Any], known: set[str], where: str) -> None:
    """Refuse keys that are not known, with those that are.

    Raises:
        ApiError: 422.
    """
    if options.keys() - known:
        raise ApiError(422, f"{where} has unknown keys; known: {', '.join(sorted(known))}")


def flag(options: dict[str, Any], name: str, default: bool) -> bool:
    """A value that has to be true or false, if it is there.

    Raises:
        ApiError: 422, it is neither.
    """
    value = options.get(name, default)
    if not isinstance(value, bool):
        raise ApiError(422, f"`{name}` is not true or false")
    return value


def _choice(options: dict[str, Any], name: str, choices: dict[str, Any]) -> Any:
    if name not in options:
        return None
    given = options[name]
    choice = choices.get(given.lower()) if isinstance(given, str) else None
    if choice is None:
        raise ApiError(422, f"`{name}` is none of {', '.join(choices)}")
    return choice


def _count(options: dict[str, Any], name: str) -> int | None:
    value = options.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ApiError(422, f"`{name}` is not a whole number above 0")
    return value


async def info(request: Request) -> Response:
    """`GET /info`: the first model and the limits, under text-embeddings-inference's keys and some of our own."""
    registry, settings = request.app.state.registry, request.app.state.settings
    model: Model = registry.first
    engine, task = model.engine, model.engine.task
    columns = [task.text] + ([task.text_pair] if task.text_pair is not None else [])
    places = {name: place for place, name in enumerate(task.labels)}
    by_place = {str(place): name for name, place in places.items()}
    described = {
        "model_id": model.name,
        "model_sha": engine.manifest.sha256 if engine.manifest else None,
        "model_dtype": {"fp16": "float16", "int8": "int8"}.get(engine.variant, "float32"),
        "model_type": {"classifier": {"id2label": by_place, "label2id": places}},
        "max_concurrent_requests": settings.max_requests,
        "max_input_length": engine.tokenizer_info.longest,
        "max_batch_tokens": model.max_batch_tokens,
        "max_client_batch_size": settings.max_texts,
        "auto_truncate": settings.auto_truncate,
        "version": __version__,
        "task": task.name,
        "kind": task.kind,
        "columns": columns,
        "labels": list(task.labels),
        "thresholds": {point.label: point.threshold for point in task.points},
        "answers_from": None if task.abstain is None else task.abstain.threshold,
        "windows": None if engine.tokenizer_info.long is None else engine.tokenizer_info.long.model_dump(mode="json"),
        "sets": None if task.sets is None else task.sets.model_dump(include={"coverage", "at_least"}),
        "second_model": None if engine.second is None else engine.second.variant,
        "variant": engine.variant,
        "provider": engine.provider,
        "threads": engine.threads,
        "models": list(registry.models),
    }
    return JsonResponse(described)


async def health(request: Request) -> Response:
    """`GET /health`: 200 while the service takes requests, otherwise 503."""
    require_ready(request)
    return JsonResponse({"status": "ok"})
