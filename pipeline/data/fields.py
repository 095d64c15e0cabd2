"""The fields of one row: checked, and as the numbers by which rows are told apart and tied together."""

import hashlib
import math
from datetime import UTC, date, datetime

from kdc.pipeline.data.problems import RowProblem, is_nan
from kdc.serving.engine.tokenizing import is_blank

_TELLING = 20  # characters of a text that two pairs do not share by chance


def check_text(value: object, column: str) -> str:
    """A text that a model can read.

    Raises:
        RowProblem: it is not a string, NaN, or nothing but white space.
    """
    if isinstance(value, str):
        if not is_blank(value) and value.lower() != "nan":
            return value
        what = "text is NaN" if value.lower() == "nan" else "text is empty"
    elif value is None or is_nan(value):
        what = "text is missing"
    else:
        raise RowProblem("text is not a string", f"column {column!r} holds {type(value).__name__}", "check --text")
    raise RowProblem(what, f"column {column!r}", "fill in or remove these rows")


def hash_of(text: str, pair: str | None) -> int:
    """64 bits of a text or pair. White space around a text does not count, because no model sees it.

    Among a million different texts, two share a number with a chance of one in 10^7.

    Raises:
        RowProblem: the text cannot be written as UTF-8.
    """
    try:
        content = text.strip().encode()
        if pair is not None:
            content = b"%d:%b%b" % (len(content), content, pair.strip().encode())
    except UnicodeEncodeError:
        raise RowProblem("text holds half a character (a lone surrogate)", remedy="correct these rows") from None
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def sides_of(text: str, pair: str) -> tuple[int, int]:
    """64 bits of each text of a pair. A short one ("yes", a name) is in many pairs that have nothing to do with each
    other: it has those of the pair."""
    whole = hash_of(text, pair)
    return tuple(hash_of(side, None) if len(side.strip()) >= _TELLING else whole for side in (text, pair))  # type: ignore[return-value]


def group_of(value: object, column: str) -> str:
    """A row's group as text; an empty one is none.

    Raises:
        RowProblem: it is missing.
    """
    if value is None or is_nan(value) or not str(value).strip():
        raise RowProblem("group is missing", f"column {column!r}", "give each row a group, one of its own if need be")
    return str(value).strip()


def time_of(value: object, column: str) -> float:
    """The time of a row: a number as it is, a date as seconds since 1970 (UTC where it names no zone).

    Raises:
        RowProblem: it is neither.
    """
    number = _number(value)
    if number is not None:
        return number
    try:
        if isinstance(value, date):  # a `datetime` is one too
            value = value.isoformat()
        moment = datetime.fromisoformat(str(value).strip())
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        what = "time is neither a number nor a date as ISO 8601 writes it"
        raise RowProblem(what, f"column {column!r} holds {str(value)[:40]!r}", "such as 2026-11-27T12:00:00Z") from None


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
