"""The dialect of text-embeddings-inference and the Hub's clients: `/`, `/predict`, `/info`, `/health`.

huggingface_hub sends `parameters`, and reads a list of lists even for one row.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, WrapValidator
from starlette.requests import Request
from starlette.responses import Response

from kdc.artifact.task_kinds import KINDS, Kind
from kdc.common.version import __version__
from kdc.serving.engine.engine import Engine, activate
from kdc.serving.http.api.inference import Question, Wanted, require_ready, respond
from kdc.serving.http.api.request_body import Batch, Body, Pair
from kdc.serving.http.model import Answer, Model
from kdc.serving.http.replies import ApiError, JsonResponse, written

_KINDS: dict[str | None, Kind] = {"softmax": "classification", "sigmoid": "multilabel", "none": "regression"}
_MANY_LABELS, _FEW_OF = 256, 16  # with so many labels, a `top_k` of a sixteenth needs no full sort


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _told_apart(value: Any, validated: Callable[[Any], list[Any]]) -> Sequence[Any]:
    """One text or pair as a tuple, a batch as a list."""
    is_row = isinstance(value, str) or (isinstance(value, list) and all(isinstance(text, str) for text in value))
    return tuple(validated([value])) if is_row else validated(value)


class Options(Body):
    """Options of a prediction. `null` means the default, since clients send their defaults.

    With `decision` each row is {"decision", "scores"}, plus "set" if the model has label sets.
    """

    truncate: bool | None = None
    truncation_direction: Annotated[Literal["left", "right", "Left", "Right"], BeforeValidator(_lower)] | None = None
    raw_scores: bool | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    decision: bool | None = None
    function_to_apply: Annotated[Literal["softmax", "sigmoid", "none"], BeforeValidator(_lower)] | None = None


class Parameters(Options):
    """Options of the Hub's clients. They win over the body's own, except that `truncate` wins over `truncation`."""

    truncation: bool | None = None


class PredictRequest(Options, Question):
    """Rows and options. `inputs` is "a" or ["a"]: one text; ["a", "b"]: a pair; [["a"], ["b", "c"]]: a batch."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"inputs": "a gripping film"},
                {"inputs": ["Who wrote it?", "It was written in 1911."]},
                {"inputs": [["a gripping film"], ["dull"]]},
                {"inputs": "a gripping film", "parameters": {"top_k": 1}},
            ]
        }
    )

    rows: Annotated[Batch, WrapValidator(_told_apart, Pair | str | Batch)] = Field(alias="inputs")
    parameters: Parameters | None = None

    def wanted(self, model: Model) -> Wanted:
        if self._option("decision") and not model.engine.labels:
            raise ApiError(422, "a regression has no labels to decide by; send no `decision`")
        truncate = self._option("truncate")
        if truncate is None and self.parameters is not None:
            truncate = self.parameters.truncation
        return Wanted(truncate, self._option("truncation_direction"), self._option("top_k"))

    async def reply(self, model: Model, answer: Answer) -> Response:
        """Labels and scores."""

        def values(rows: slice) -> list[Any]:
            return self._listed(model.engine, answer.logits[rows], answer.probabilities[rows])

        reply = await written(answer.logits.shape, values)
        headers = {
            "x-compute-tokens": str(sum(answer.tokens)),
            "x-truncated-texts": str(sum(answer.truncated)),
            "x-model": model.name,
        }
        is_batch = self.parameters is not None or isinstance(self.rows, list)
        return JsonResponse(reply if is_batch else reply[1:-1], headers=headers)

    def _option(self, name: str) -> Any:
        in_parameters = self.parameters is not None and name in self.parameters.model_fields_set
        return getattr(self.parameters if in_parameters else self, name)

    def _listed(self, engine: Engine, logits: np.ndarray, probabilities: np.ndarray) -> list[Any]:
        function = "regression" if self._option("raw_scores") else _KINDS.get(self._option("function_to_apply"))
        if function is None or (KINDS[function].has_labels and not engine.labels):
            scores = probabilities
        else:
            scores = activate(logits, function, engine.temperature)
        rows: list[Any] = labelled(engine, scores, self._option("top_k"))
        if self._option("decision"):
            decisions = engine.decided(probabilities)
            rows = [{"decision": label, "scores": row} for label, row in zip(decisions, rows, strict=True)]
            if engine.task.sets is not None:
                sets = engine.label_sets(probabilities)
                rows = [row | {"set": labels} for row, labels in zip(rows, sets, strict=True)]
        return rows


async def predict(request: Request) -> Response:
    """Labels and scores, best first. One text or pair gives one list. A batch, or a body with `parameters`, gives a
    list of lists."""
    return await respond(request, PredictRequest)


def labelled(engine: Engine, outputs: np.ndarray, top_k: int | None = None) -> list[list[dict[str, Any]]]:
    """The `top_k` labels and scores of (rows, outputs), best first."""
    names = engine.labels or ("score",)
    return [
        [{"label": names[column], "score": row[column]} for column in order]
        for row, order in zip(outputs.tolist(), _best(outputs, top_k), strict=True)
    ]


def _best(outputs: np.ndarray, most: int | None) -> list[list[int]]:
    if most is None or outputs.shape[1] < _MANY_LABELS or most > outputs.shape[1] // _FEW_OF:
        best: list[list[int]] = np.argsort(-outputs, axis=1, kind="stable")[:, :most].tolist()
        return best
    lows = -np.partition(-outputs, most - 1, axis=1)[:, most - 1]
    best = []
    for row, low in zip(outputs, lows, strict=True):
        columns = np.flatnonzero(row >= low)  # more if several tie
        best.append(columns[np.argsort(-row[columns], kind="stable")[:most]].tolist())
    return best


async def info(request: Request) -> Response:
    """The first model and the limits, under text-embeddings-inference's keys and some of our own."""
    registry, settings = request.app.state.registry, request.app.state.settings
    model: Model = registry.first
    engine, task = model.engine, model.engine.task
    columns = [task.text] + ([task.text_pair] if task.text_pair is not None else [])
    described = {
        "model_id": model.name,
        "model_sha": engine.manifest.sha256 if engine.manifest else None,
        "model_dtype": {"fp16": "float16", "int8": "int8"}.get(engine.variant, "float32"),
        "model_type": {
            "classifier": {
                "id2label": {str(column): label for column, label in enumerate(task.labels)},
                "label2id": {label: column for column, label in enumerate(task.labels)},
            }
        },
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
        "questions": [question.text for question in model.questions.values()],
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
    """Whether requests are taken."""
    require_ready(request)
    return JsonResponse({"status": "ok"})
