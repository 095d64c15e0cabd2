"""Who answers a question of System One or Decisions, and the answer's numbers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.requests import Request

from kdc.artifact.question import Question, state_text
from kdc.artifact.question_forms import WireQuestion
from kdc.serving.engine.deciding import answered
from kdc.serving.http.api.inference import Wanted, ask
from kdc.serving.http.api.request_body import within_limits
from kdc.serving.http.model import Model
from kdc.serving.http.registry import Registry
from kdc.serving.http.replies import ABSTAINED, ARTIFACT, ApiError, Steps

MOST_QUESTIONS = 400  # of a request, as in OpenAI's API
_MOST_LISTED = 20


@dataclass(frozen=True, slots=True)
class Asked:
    question: Question
    model: Model
    outputs: tuple[int, ...]  # as `Question.outputs`
    template: str | None


@dataclass(frozen=True, slots=True)
class Numbers:
    probabilities: list[float]  # by option, with the sum 1; for a noul only of yes
    confidence: float
    more: dict[str, bool]  # {"x_abstained": True} if the artifact abstains


@dataclass(frozen=True, slots=True)
class Answered:
    numbers: list[Numbers]  # of each question
    models: str  # names
    tokens: int  # that the models read


def find(request: Request, name: object, wire: WireQuestion, where: Steps) -> Asked | None:
    """Find the artifact that knows the question, else one of `--answers` with the same options.

    Args:
        name: the request's model. Only a served name narrows the search; others, such as `jev-latest`, are upstream's.
    """
    state = request.app.state
    registry: Registry = state.registry
    served = {name: registry.models[name]} if isinstance(name, str) and name in registry.models else registry.models
    try:
        question = wire.question
        fingerprint = question.fingerprint
    except ValueError as error:
        raise ApiError(422, str(error), where=where) from None
    for model in served.values():
        if (known := model.questions.get(fingerprint)) is not None:
            outputs = question.outputs(model.engine.labels, model.engine.task.traits, known.label)
            if outputs is not None:
                return Asked(question, model, outputs, known.template)
    for name, model in served.items():
        if name in state.settings.answering and not model.engine.task.is_pair:
            own = next(iter(model.questions.values()), None) if model.engine.task.traits.is_exclusive else None
            label, template = (None, None) if own is None else (own.label, own.template)
            if (outputs := question.outputs(model.engine.labels, model.engine.task.traits, label)) is not None:
                return Asked(question, model, outputs, template)
    return None


def unknown(registry: Registry, where: Steps) -> ApiError:
    return ApiError(422, f"no artifact here answers this question; known: {_known(registry)}", where=where)


def _known(registry: Registry) -> str:
    known = [f"{name}: {each.text}" for name, model in registry.models.items() for each in model.questions.values()]
    more = [f"{len(known) - _MOST_LISTED} more"] if len(known) > _MOST_LISTED else []
    return "; ".join(known[:_MOST_LISTED] + more) or "none, see `kdc compress --question` and `kdc serve --answers`"


async def answers(request: Request, asked: list[Asked], state: Any) -> Answered:
    """Questions of one artifact with the same template share a row."""
    try:
        texts = {template: state_text(state, template) for template in {each.template for each in asked}}
    except ValueError as error:
        raise ApiError(422, str(error), where=("state",)) from None
    models = {each.model.name: each.model for each in asked}
    rows: dict[tuple[str, str | None], np.ndarray] = {}
    tokens = abstained = 0
    for name, model in models.items():
        templates = list({each.template: None for each in asked if each.model is model})
        given = within_limits([texts[template] for template in templates], request.app.state.settings)
        answer = await ask(request, model, given, Wanted())
        rows |= {(name, template): row for template, row in zip(templates, answer.probabilities, strict=True)}
        tokens += sum(answer.tokens)
        abstained += request.scope.pop(ABSTAINED, 0)
    request.scope[ARTIFACT] = ",".join(model.artifact for model in models.values())
    if any(model.engine.task.abstain is not None for model in models.values()):
        request.scope[ABSTAINED] = abstained
    numbers = [_numbers(each, rows[each.model.name, each.template]) for each in asked]
    return Answered(numbers, ",".join(models), tokens)


def _numbers(asked: Asked, row: np.ndarray) -> Numbers:
    probabilities = row[list(asked.outputs)].astype(np.float64)
    if asked.question.type != "noul":
        probabilities /= probabilities.sum()
    abstain = asked.model.engine.task.abstain
    abstains = abstain is not None and not answered(row[None], abstain)[0]
    more = {"x_abstained": True} if abstains else {}
    return Numbers(probabilities.tolist(), confidence(asked.question.type, probabilities), more)


def confidence(kind: str, probabilities: np.ndarray) -> float:
    """TypeSafe's confidence, in [0, 1].

    For a choice it is (max p - 1/n) / (1 - 1/n), for a score 1 - spread / (spread of equally probable levels). The
    spread is the mean distance from the most probable level.
    """
    count, best = len(probabilities), int(probabilities.argmax())
    if kind == "noul":  # it has none
        return 0.0
    if kind == "choice":
        return max(0.0, (float(probabilities[best]) - 1 / count) / (1 - 1 / count))
    levels = np.arange(count)
    spread = float((probabilities * abs(levels - best)).sum())
    return max(0.0, 1 - spread / float(abs(levels - (count - 1) / 2).mean()))
