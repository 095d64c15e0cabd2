"""A dialect is a `Question`: its body's pydantic model, which also writes the reply."""

import asyncio
import contextlib
import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from kdc.serving.engine.deciding import answered
from kdc.serving.engine.engine import Text
from kdc.serving.http.api.gate import wait_for_freed_memory
from kdc.serving.http.api.request_body import SMALL_BYTES, Body, ModelName, checked, read_json, within_limits
from kdc.serving.http.model import Answer, Model
from kdc.serving.http.replies import ABSTAINED, ARTIFACT, ApiError

_OUTPUT_BYTES = 12  # an output's logit, twice, and its probability
_WATCH_S = 0.05  # after it a task watches the client; most answers are faster


@dataclass(frozen=True, slots=True)
class Wanted:
    truncate: bool | None = None  # None: the setting
    side: str | None = None  # "left" or "right"; None: the artifact's
    top_k: int | None = None  # of each row in the reply; None: all
    score_bytes: int | None = None  # of a score in the reply; None: JSON with labels


class Question(Body):
    """A body with rows to answer. Subclasses alias `rows`."""

    rows: Sequence[str | list[str]]
    model: ModelName = None

    def wanted(self, model: Model) -> Wanted:
        return Wanted()

    @abstractmethod
    async def reply(self, model: Model, answer: Answer) -> Response:
        """Write the reply."""


async def respond(request: Request, *kinds: type[Question]) -> Response:
    """Answer a body. The key that holds its rows tells its kind."""
    name = request.path_params.get("name")
    if name is not None:
        model_named(request, name)  # 404 before the body is read
    question = _understand(await read_json(request), kinds)
    rows = within_limits(question.rows, request.app.state.settings)
    question.rows = question.rows[:0]  # only `rows` keeps the texts
    # A reload may have replaced the model.
    model = model_named(request, question.model if name is None else name)
    question.model = None  # freed: it may be any JSON
    answer = await ask(request, model, rows, question.wanted(model))
    return await question.reply(model, answer)


def _understand(document: object, kinds: tuple[type[Question], ...]) -> Question:
    names = [str(kind.model_fields["rows"].alias) for kind in kinds]
    for kind, name in zip(kinds, names, strict=True):
        if isinstance(document, dict) and name in document:
            return checked(kind, document)
    raise ApiError(422, f"the body has no `{'`, no `'.join(names)}`; see /docs")


def require_ready(request: Request) -> None:
    if not request.app.state.gate.is_ready():
        raise ApiError(503, "the service is starting or draining")


def model_named(request: Request, name: object) -> Model:
    registry = request.app.state.registry
    models: dict[str, Model] = registry.models
    if name is None:
        first: Model = registry.first
        return first
    if not isinstance(name, str) or name not in models:
        raise ApiError(404, f"there is no such model; it serves: {', '.join(models)}")
    return models[name]


async def ask(request: Request, model: Model, rows: list[Text], wanted: Wanted) -> Answer:
    """Answer rows. The work is cancelled if the client leaves."""
    state = request.app.state
    request.scope[ARTIFACT] = model.artifact
    if (held := request.scope.get("kdc_bytes", 0)) > SMALL_BYTES:  # an emoji quadruples a text's memory
        texts = (text for row in rows for text in ([row] if isinstance(row, str) else row))
        state.gate.hold(request.scope, max(0, sum(map(sys.getsizeof, texts)) - held))
    _hold_reply(request, model, len(rows), wanted)
    truncate = state.settings.auto_truncate if wanted.truncate is None else wanted.truncate
    with cancelled_when_gone(request):
        answer = await model.answer(rows, truncate=truncate, side=wanted.side, trace=request.scope.get("kdc_trace"))
    state.metrics.predicted(model, answer)
    await wait_for_freed_memory(request.scope)
    if (abstain := model.engine.task.abstain) is not None:
        request.scope[ABSTAINED] = int((~answered(answer.probabilities, abstain)).sum())
    return answer


def _hold_reply(request: Request, model: Model, rows: int, wanted: Wanted) -> None:
    state, outputs = request.app.state, model.engine.task.outputs
    score_bytes = wanted.score_bytes or model.score_bytes
    per_row = min(wanted.top_k or outputs, outputs)
    scores, most = rows * per_row, state.settings.max_reply_bytes // score_bytes
    if scores > most:
        raise ApiError(
            413,
            f"the reply is too large; given: {scores} scores, {rows} rows of {per_row}; at most {most}; "
            "send fewer texts, or use /predict with a smaller top_k",
        )
    size = per_row * score_bytes + outputs * _OUTPUT_BYTES  # of a row
    held = request.scope.get("kdc_bytes", 0)
    if rows > (most := max(0, state.settings.max_bodies_bytes - held) // 2 // size):
        raise ApiError(
            413, f"too many texts for a model of {outputs} labels; given: {rows}; at most {most}; send fewer"
        )
    state.gate.hold(request.scope, rows * size, leave=rows * size)


@contextlib.contextmanager
def cancelled_when_gone(request: Request) -> Iterator[None]:
    """Cancel this task if the client leaves. Read the body before."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    watchers: list[asyncio.Task[None]] = []

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        if task is not None:
            task.cancel()

    timer = loop.call_later(_WATCH_S, lambda: watchers.append(loop.create_task(watch())))
    try:
        yield
    finally:
        timer.cancel()
        for watcher in watchers:
            watcher.cancel()
