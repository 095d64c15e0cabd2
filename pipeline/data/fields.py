"""Checks and hashes a row's fields."""

import hashlib
import math
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from unicodedata import normalize

import numpy as np

from kdc.pipeline.data.overlap import Ints
from kdc.pipeline.data.problems import RowProblem, is_missing
from kdc.serving.engine.tokenizing import Text, is_blank

_TELLING = 20  # characters
_LONGEST_VALUE = 100  # characters of a slice's value


def check_text(value: object, column: str) -> str:
    """Raise RowProblem for non-strings, blanks and NaN."""
    if is_missing(value):
        what = "text is missing"
    elif not isinstance(value, str):
        raise RowProblem("text is not a string", f"column {column!r} holds {type(value).__name__}", "check --text")
    elif value.lower() == "nan":
        what = "text is NaN"
    elif is_blank(value):
        what = "text is empty"
    else:
        return value
    raise RowProblem(what, f"column {column!r}", "fill in or remove these rows", is_invalid=True)


def hash_of(text: str, pair: str | None) -> int:
    """64 bits, in NFC (`Ü` has two spellings) and without outer white space.

    A million texts collide with a chance of about 1e-7.

    Raises:
        RowProblem: the text has a lone surrogate.
    """
    try:
        content = normalize("NFC", text.strip()).encode()
        if pair is not None:
            content = b"%d:%b%b" % (len(content), content, normalize("NFC", pair.strip()).encode())
    except UnicodeEncodeError:
        what = "text holds half a character (a lone surrogate)"
        raise RowProblem(what, remedy="correct these rows", is_invalid=True) from None
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def sides_of(text: str, pair: str) -> tuple[int, int]:
    """Short texts ("yes", a name) also occur in unrelated pairs, so they get the pair's hash."""
    whole = hash_of(text, pair)
    first, second = (hash_of(side, None) if len(side.strip()) >= _TELLING else whole for side in (text, pair))
    return first, second


def hashes_of(texts: Sequence[Text]) -> tuple[Ints, Ints]:
    """`hash_of` each row, (rows,), and `sides_of` each pair, (rows, 2) or (rows, 0)."""
    if isinstance(texts[0], str):
        return np.array([hash_of(str(text), None) for text in texts]), np.zeros((len(texts), 0), dtype=np.int64)
    return np.array([hash_of(*pair) for pair in texts]), np.array([sides_of(*pair) for pair in texts])


def group_of(value: object, column: str) -> str:
    group = "" if is_missing(value) else str(value).strip()
    if not group:
        raise RowProblem("group is missing", f"column {column!r}", "give each row a group, one of its own if need be")
    return group


def slice_of(value: object) -> str:
    """Raise RowProblem for a lone surrogate."""
    text = "" if is_missing(value) else str(value).strip()[:_LONGEST_VALUE]
    hash_of(text, None)
    return text or "(none)"


def time_of(value: object, column: str) -> float:
    """A number, or a date's seconds since 1970 (UTC by default)."""
    with suppress(TypeError, ValueError, OverflowError):
        if math.isfinite(number := float(value)):  # type: ignore[arg-type]
            return number
    try:
        moment = datetime.fromisoformat(str(value).strip())  # also reads `str(datetime)`
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        what = "time is neither a number nor an ISO 8601 date"
        raise RowProblem(what, f"column {column!r} holds {str(value)[:40]!r}", "such as 2026-11-27T12:00:00Z") from None
