"""Request bodies: limits, JSON, and what dialects share."""

import contextlib
import functools
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema
from starlette.requests import Request

from kdc.serving.engine.engine import Text
from kdc.serving.engine.tokenizing import is_blank
from kdc.serving.http.api.gate import Gate
from kdc.serving.http.replies import EMPTY, ApiError
from kdc.serving.http.settings import ServeSettings

# Most `Marks` of each row, and of all else.
_MARKS_A_ROW, _OTHER_MARKS = 8, 512
SMALL_BYTES = 32 * 1024  # smaller bodies need no turn
MOST_OF_A_KEY = 100  # characters in an error message
_CLOSE = {"Connection": "close"}  # the body's rest stays unread


class Part(BaseModel):
    """An object in a body; its class is also its OpenAPI schema."""

    model_config = ConfigDict(strict=True)


class Body(Part):
    """A `Part` that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _has_known_keys(cls, values: Any) -> Any:
        """Refuse unknown keys. pydantic would make an error for each, with its name."""
        if isinstance(values, dict) and not values.keys() <= (known := _keys_of(cls)):
            names = ", ".join(sorted(known))
            raise PydanticCustomError("unknown_keys", "Input has unknown keys; known: {names}", {"names": names})
        return values


@functools.cache
def _keys_of(kind: type[Body]) -> frozenset[str]:
    return frozenset(field.alias or name for name, field in kind.model_fields.items())


class Otherwise:
    def __init__(self, message: str) -> None:
        self._message = message

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.custom_error_schema(handler(source), "input", custom_error_message=self._message)


def in_a_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Pair = Annotated[list[str], Field(min_length=1, max_length=2)]
Row = Annotated[str | Pair, Otherwise("Input should be a text, [text] or [text, text]; a batch: [[...], [...]]")]
Batch = Annotated[list[Row], Field(min_length=1, fail_fast=True)]
# Any JSON: a name that is no string gets 404.
ModelName = Annotated[Any, WithJsonSchema({"type": ["string", "null"]})]
B = TypeVar("B", bound=Part)


def checked(kind: type[B], document: Any) -> B:
    """Validate a document. The error names the first wrong field, without any text."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)[0]
    steps = tuple(step if isinstance(step, int) else step[:MOST_OF_A_KEY] for step in wrong["loc"])
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
    raise ApiError(422, f"{f'`{where}`' if where else 'the body'}: {wrong['msg']}; see /docs", where=steps)


def within_limits(batch: Sequence[str | list[str]], settings: ServeSettings) -> list[Text]:
    """Check the texts. Returns texts and pairs."""
    if len(batch) > settings.max_texts:
        raise ApiError(422, f"too many texts; given: {len(batch)}; at most {settings.max_texts} a request")
    rows = [[row] if isinstance(row, str) else row for row in batch]
    longest = max(len(text) for row in rows for text in row)
    if longest > settings.max_text_chars:
        raise ApiError(422, f"a text is too long; given: {longest} characters; at most {settings.max_text_chars}")
    for number, row in enumerate(rows):
        if any(map(is_blank, row)):
            raise ApiError(400, f"a text is empty; given: row {number}; send more than white space", kind=EMPTY)
    return [row[0] if len(row) == 1 else (row[0], row[1]) for row in rows]


class Marks:
    """Counts the characters that make objects, to bound a JSON decoder's memory.

    These are quotes and, outside strings, `[`, `{` and commas. Each makes at most two objects. Invalid JSON is
    bounded too: up to its first wrong byte it has the same strings.
    """

    def __init__(self) -> None:
        self.count = 0
        self._in_string = 0
        self._rest = b""  # the last piece's final backslash

    def add(self, piece: bytes) -> None:
        piece = (self._rest + piece).replace(b"\\\\", b"").replace(b'\\"', b"")  # left to right, like JSON
        self._rest = b"\\" if piece.endswith(b"\\") else b""
        parts = piece.split(b'"')
        outside = b"".join(parts[self._in_string :: 2])
        self.count += len(parts) - 1 + len(outside) - len(outside.translate(None, b"[{,"))
        self._in_string ^= (len(parts) - 1) & 1


async def read_bytes(request: Request, json_bytes: int | None = None) -> bytes:
    """Read a body whose first `json_bytes` (None: all) are JSON. Raises ClientDisconnect if the client leaves."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "the body is compressed; send it without Content-Encoding")
    gate: Gate = request.app.state.gate
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
            gate.hold(request.scope, len(part))
        except ApiError as error:
            error.headers |= _CLOSE
            raise
        parts.append(part)
        if size > most_marks:  # fewer bytes have fewer marks
            for counted in parts if marks is None else [part]:
                marks = marks or Marks()
                async with gate.turn(size > SMALL_BYTES):
                    marks.add(counted[:left])
                left = max(0, left - len(counted))
        if marks is not None and marks.count > most_marks:
            raise ApiError(
                422,
                f"the body has more than {most_marks} brackets, braces, commas and quotes; send at most "
                f"{settings.max_texts} texts, and little besides",
                _CLOSE,
            )
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is too large; at most {most} bytes", _CLOSE)


async def read_json(request: Request) -> Any:
    return await decode_in_turn(request, await read_json_bytes(request))


async def read_json_bytes(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "application/x-www-form-urlencoded", ""):  # `curl -d` names a form's type
        raise ApiError(415, "the body is not application/json; send Content-Type: application/json")
    return await read_bytes(request)


def in_turn(request: Request) -> contextlib.AbstractAsyncContextManager[None]:
    gate: Gate = request.app.state.gate
    return gate.turn(request.scope.get("kdc_bytes", 0) > SMALL_BYTES)


async def decode_in_turn(request: Request, body: bytes) -> Any:
    gate: Gate = request.app.state.gate
    async with gate.turn(len(body) > SMALL_BYTES):
        return decoded(body)


def decoded(body: bytes) -> Any:
    """Decode JSON here. A thread would hold the interpreter's lock too. `Marks` bounds the time to 16 ms."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        wrong = "is not valid JSON in UTF-8" if body.strip() else 'is empty; send {"inputs": "a text"}'
    raise ApiError(400, f"the body {wrong}")  # out here: the decoder's error holds the document
