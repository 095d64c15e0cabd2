"""What all dialects share: which model a request asks, whether the service is ready, and the model's answer."""

from __future__ import annotations

from starlette.requests import Request

from kdc.common.errors import InputError
from kdc.serving.engine.engine import Text
from kdc.serving.http.api.body import cancelled_when_gone
from kdc.serving.http.api.errors import ApiError, one_line
from kdc.serving.http.model import Answer, Model


def require_ready(request: Request) -> None:
    """Refuse the request unless the service is ready.

    Raises:
        ApiError: 503.
    """
    if not request.app.state.gate.is_ready():
        raise ApiError(503, "the service is starting or draining")


def model_named(request: Request, name: object) -> Model:
    """The model of that name.

    Raises:
        ApiError: 404, there is none.
    """
    models: dict[str, Model] = request.app.state.registry.models
    if not isinstance(name, str) or name not in models:
        raise ApiError(404, f"there is no such model; it serves: {', '.join(models)}")
    return models[name]


async def ask(request: Request, model: Model, rows: list[Text], *, truncate: bool, side: str | None) -> Answer:
    """The model's answer to rows. It is no longer computed once the client has left.

    Args:
        request: its body was read.
        model: the model to ask.
        rows: texts or pairs, at least one.
        truncate: whether rows that are too long are cut.
        side: the side to cut; None for the artifact's own.

    Raises:
        ApiError: 422, the rows are not what the task takes, or too long.
    """
    try:
        with cancelled_when_gone(request):
            return await model.answer(rows, truncate=truncate, side=side, trace=request.scope.get("kdc_trace"))
    except InputError as error:
        raise ApiError(422, one_line(error)) from None
