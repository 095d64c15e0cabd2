"""What all dialects share: reading the body, the limits of its rows, the model that is asked, and its answer."""

import asyncio
import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import orjson
from starlette.requests import Request

from kdc.serving.engine.deciding import answered
from kdc.serving.engine.engine import Text
from kdc.serving.engine.tokenizing import is_blank
from kdc.serving.http.api.gate import Gate, wait_for_freed_memory
from kdc.serving.http.model import Answer, Model
from kdc.serving.http.replies import ABSTAINED, ARTIFACT, EMPTY, ApiError
from kdc.serving.http.settings import ServeSettings

# Brackets, braces, commas and quotes of a JSON body: most around one row, which is two texts in lists of their own in
# two tensors of V2, and most of everything else, such as options and V2's descriptions of tensors.
_MARKS_A_ROW, _OTHER_MARKS = 8, 512
_SMALL_BYTES = 32 * 1024  # of a body, whose texts in memory are too few bytes to count
_OUTPUT_BYTES = 12  # of each output of a row: two logits, while rows are put together, and its probability


class Marks:
    """Counts the characters of a JSON document that make objects, so that its memory is bounded before it is decoded.

    These are brackets, braces and commas outside of strings, and quotes. A decoder makes at most two objects for each.
    Before the first byte that is not JSON it sees the same strings, so that this bounds the work of a document that it
    refuses, too. It counts piece by piece.

    Attributes:
        count: of what was added so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._in_string = 0
        self._rest = b""  # a backslash at the end of the last piece, whose next byte is in the next piece

    def add(self, piece: bytes) -> None:
        """Count the next piece."""
        piece = (self._rest + piece).replace(b"\\\\", b"").replace(b'\\"', b"")  # from left to right: only escapes go
        self._rest = b"\\" if piece.endswith(b"\\") else b""
        parts = piece.split(b'"')
        outside = b"".join(parts[self._in_string :: 2])
        self.count += len(parts) - 1 + len(outside) - len(outside.translate(None, b"[{,"))
        self._in_string ^= (len(parts) - 1) & 1


def require_ready(request: Request) -> None:
    """Refuse the request unless the service is ready.

    Raises:
        ApiError: 503.
    """
    if not request.app.state.gate.is_ready():
        raise ApiError(503, "the service is starting or draining")


async def read_bytes(request: Request, json_bytes: int | None = None) -> bytes:
    """Read the whole body, of which so many bytes are JSON; None: all.

    Raises:
        ApiError: 413 if it is larger than the limit, 415 if it is compressed, 422 if it has more marks than a request's
            texts need, 429 if all bodies in work together are too large.
        ClientDisconnect: the client left before the body's end.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "the body is compressed; send it without Content-Encoding")
    settings: ServeSettings = request.app.state.settings
    most, most_marks = settings.max_body_bytes, _MARKS_A_ROW * settings.max_texts + _OTHER_MARKS
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > most:
        raise _too_large(most)
    parts, size = list[bytes](), 0
    marks: Marks | None = None
    left = most if json_bytes is None else json_bytes
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise _too_large(most)
        try:
            request.app.state.gate.hold(request.scope, len(part))
        except ApiError as error:
            error.headers["Connection"] = "close"  # the rest of the body is not read
            raise
        parts.append(part)
        if size > most_marks:  # fewer bytes have fewer marks
            for counted in parts if marks is None else [part]:
                marks = marks or Marks()
                async with request.app.state.gate.turn(size > _SMALL_BYTES):
                    marks.add(counted[:left])
                left = max(0, left - len(counted))
        if marks is not None and marks.count > most_marks:
            raise ApiError(
                422,
                f"the body has more than {most_marks} brackets, braces, commas and quotes; send at most "
                f"{settings.max_texts} texts, and little besides",
                {"Connection": "close"},  # as the rest of the body is not read
            )
    return parts[0] if len(parts) == 1 else b"".join(parts)


def content_type(request: Request) -> str:
    """The body's type in lower case; "" if the client does not tell it."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is too large; at most {most} bytes", {"Connection": "close"})


async def read_json(request: Request) -> Any:
    """Read the body as JSON.

    Raises:
        ApiError: 415 if it has another type, 400 if it is empty or not JSON; also as `read_bytes`.
    """
    # The form's type is what `curl -d` sends.
    if content_type(request) not in ("application/json", "application/x-www-form-urlencoded", ""):
        raise ApiError(415, "the body is not application/json; send Content-Type: application/json")
    body = await read_bytes(request)
    async with turn_of(request, body):
        return decoded(body)


def turn_of(request: Request, body: bytes) -> contextlib.AbstractAsyncContextManager[None]:
    """A turn of the event loop to decode a body in: other requests have theirs before more is done with a large one."""
    gate: Gate = request.app.state.gate
    return gate.turn(len(body) > _SMALL_BYTES)


def decoded(body: bytes) -> Any:
    """Decode JSON. The loop waits: the decoder keeps the interpreter's lock, and marks bound its work to 16 ms.

    Raises:
        ApiError: 400 if it is empty, not JSON, not UTF-8, or nested too deep.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        wrong = "is not valid JSON in UTF-8" if body.strip() else 'is empty; send {"inputs": "a text"}'
    raise ApiError(400, f"the body {wrong}")  # out here, since the decoder's error holds the document


def within_limits(rows: Sequence[Sequence[str]], settings: ServeSettings) -> list[Text]:
    """Check how many rows of one or two texts there are, and how long the texts are; returns texts and pairs.

    Raises:
        ApiError: 422, too many rows, or a text that is too long; 400, a text is blank.
    """
    if len(rows) > settings.max_texts:
        raise ApiError(422, f"too many texts; given: {len(rows)}; at most {settings.max_texts} a request")
    longest = max(len(text) for row in rows for text in row)
    if longest > settings.max_text_chars:
        raise ApiError(422, f"a text is too long; given: {longest} characters; at most {settings.max_text_chars}")
    for place, row in enumerate(rows):
        if any(map(is_blank, row)):
            raise ApiError(400, f"a text is empty; given: row {place}; send more than white space", kind=EMPTY)
    return [row[0] if len(row) == 1 else (row[0], row[1]) for row in rows]


def model_named(request: Request, name: object) -> Model:
    """The model of that name.

    Raises:
        ApiError: 404, there is none.
    """
    models: dict[str, Model] = request.app.state.registry.models
    if not isinstance(name, str) or name not in models:
        raise ApiError(404, f"there is no such model; it serves: {', '.join(models)}")
    return models[name]


def model_asked(request: Request, body: dict[str, Any]) -> Model:
    """The model that the path names, else the body's `model`, else the first one.

    Raises:
        ApiError: 404, there is none of that name.
    """
    name = request.path_params.get("name", body.get("model"))
    first: Model = request.app.state.registry.first
    return first if name is None else model_named(request, name)


async def ask(
    request: Request,
    model: Model,
    rows: list[Text],
    *,
    truncate: bool | None = None,
    side: str | None = None,
    top_k: int | None = None,
    score_bytes: int | None = None,
) -> Answer:
    """The model's answer to rows, counted in the metrics. It is no longer computed once the client has left.

    Args:
        rows, truncate, side: as of `Model.answer`; without `truncate` the setting says whether long rows are cut.
        top_k: most scores of a row that the reply will have; None for all.
        score_bytes: about how many bytes of the reply a score takes; None for a label and a number in JSON.

    Raises:
        ApiError: 413 if the reply would be too large, 429 if all replies in work together are.
        KdcError: as `Model.answer`.
    """
    state = request.app.state
    request.scope[ARTIFACT] = model.artifact
    if (held := request.scope.get("kdc_bytes", 0)) > _SMALL_BYTES:  # one emoji makes a text four times its bytes
        texts = (text for row in rows for text in ([row] if isinstance(row, str) else row))
        state.gate.hold(request.scope, max(0, sum(map(sys.getsizeof, texts)) - held))
    _hold_reply(request, model, len(rows), top_k, model.score_bytes if score_bytes is None else score_bytes)
    truncate = state.settings.auto_truncate if truncate is None else truncate
    with _cancelled_when_gone(request):
        answer = await model.answer(rows, truncate=truncate, side=side, trace=request.scope.get("kdc_trace"))
    state.metrics.predicted(model, answer)
    await wait_for_freed_memory(request.scope)
    if (abstain := model.engine.task.abstain) is not None:
        before = request.scope.get(ABSTAINED, 0)
        request.scope[ABSTAINED] = before + int((~answered(answer.probabilities, abstain)).sum())
    return answer


def _hold_reply(request: Request, model: Model, rows: int, top_k: int | None, score_bytes: int) -> None:
    """Count a reply, and what is computed for it, before anything is computed.

    Raises:
        ApiError: 413, it is too large; 429, it is together with all others in work.
    """
    state, outputs = request.app.state, model.engine.task.outputs
    per_row = min(top_k or outputs, outputs)
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
def _cancelled_when_gone(request: Request, after_s: float = 0.05) -> Iterator[None]:
    """Cancel the code inside when the client closes its connection.

    Only answers that take longer than `after_s` are watched: most do not, and watching costs a task.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    watchers: list[asyncio.Task[None]] = []

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        if task is not None:
            task.cancel()

    timer = loop.call_later(after_s, lambda: watchers.append(loop.create_task(watch())))
    try:
        yield
    finally:
        timer.cancel()
        for watcher in watchers:
            watcher.cancel()
