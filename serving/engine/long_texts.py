"""Divides long rows into windows, and joins the windows' answers.

`kdc.pipeline.training.joining` has the same formulas for tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from kdc.artifact.manifest import Join, LongTexts
from kdc.artifact.task_kinds import KINDS, Kind

# Bounds of "noisy-or" for a window's probability and logit: logarithms are infinite beyond.
SURE, HOPELESS = 1 - 1e-6, -60.0


@dataclass(frozen=True, slots=True)
class Tokens:
    """A row or a window, with the attributes of `Encoding`."""

    ids: list[int]  # (tokens,) special tokens included
    type_ids: list[int]  # (tokens,) 0 for the first text, 1 for the second
    overflowing: bool = False  # was cut; in an `Encoding`, the pieces cut off

    def __len__(self) -> int:
        return len(self.ids)


Part: TypeAlias = Encoding | Tokens  # one row of a forward pass


@dataclass(frozen=True, slots=True)
class Windows:
    parts: tuple[Tokens, ...]
    row_tokens: int  # without repetitions
    overflowing: bool

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def ids(self) -> list[int]:
        return [token for part in self.parts for token in part.ids]

    @property
    def type_ids(self) -> list[int]:
        return [kind for part in self.parts for kind in part.type_ids]


Encoded: TypeAlias = Part | Windows  # a row


def row_tokens(row: Encoded) -> int:
    """The row's tokens, each counted once, unlike `len`."""
    return row.row_tokens if isinstance(row, Windows) else len(row)


def spread(rows: Sequence[Encoded]) -> tuple[list[Part], list[int]]:
    if Windows not in set(map(type, rows)):  # nearly always
        return list(rows), [1] * len(rows)  # type: ignore[arg-type]
    parts: list[Part] = []
    counts = []
    for row in rows:
        own = row.parts if isinstance(row, Windows) else (row,)
        parts += own
        counts.append(len(own))
    return parts, counts


def windows_of(
    ids: Sequence[int],
    type_ids: Sequence[int],
    owners: Sequence[int | None],
    *,
    max_length: int,
    long: LongTexts,
    overflowing: bool = False,
    from_left: bool = False,
) -> Windows:
    """Divide a row of more than `max_length` tokens.

    Every window has the special tokens, a pair's shorter text, and the other text's first `long.keep` tokens. The
    shorter text takes at most half of the room, kept tokens at most half of the rest.

    Args:
        ids, type_ids: (tokens,), with special tokens.
        owners: (tokens,) 0 or 1 for the first or second text, None for special tokens.
    """
    numbers = np.array([-1 if owner is None else owner for owner in owners])
    special = np.flatnonzero(numbers == -1)
    short, slid = sorted((np.flatnonzero(numbers == text) for text in (0, 1)), key=len)
    room = max_length - len(special)
    half = room // 2
    overflowing |= len(short) > half
    short = short[max(0, len(short) - half) :] if from_left else short[:half]
    room -= len(short)
    kept = slid[: min(long.keep, room // 2)]
    room, rest = max(1, room - len(kept)), slid[len(kept) :]
    last = max(0, len(rest) - room)
    starts = [*range(0, last, min(long.stride, room)), last]
    if len(starts) > long.windows:
        overflowing = True
        starts = starts[-long.windows :] if from_left else starts[: long.windows]
    windows = (np.sort(np.concatenate([special, short, kept, rest[start : start + room]])) for start in starts)
    parts = (Tokens([ids[index] for index in window], [type_ids[index] for index in window]) for window in windows)
    return Windows(tuple(parts), len(ids), overflowing)


def joined(
    logits: NDArray[np.floating], counts: Sequence[int], join: Sequence[Join], kind: Kind
) -> NDArray[np.float32]:
    """Join each row's logits to float32 (rows, outputs).

    Class logits are first normalised to log-probabilities. "noisy-or" gives the log-odds that any window has the label,
    if windows are independent (Pearl 1988).

    Args:
        logits: (parts, outputs), a row's parts side by side.
        counts: (rows,) parts per row.
        join: one way per output, or one for all.
    """
    if len(counts) == len(logits):
        return np.asarray(logits, dtype=np.float32)
    ends = np.cumsum(counts)
    rows = np.empty((len(counts), logits.shape[1]), dtype=np.float32)
    for row, (end, count) in enumerate(zip(ends, counts, strict=True)):
        part = logits[end - count : end]
        rows[row] = part[0] if count == 1 else _joined(part.astype(np.float64), join, KINDS[kind].is_exclusive)
    return rows


def _joined(part: NDArray[np.float64], join: Sequence[Join], is_exclusive: bool) -> NDArray[np.float64]:
    if is_exclusive:
        part = part - np.logaddexp.reduce(part, axis=1, keepdims=True)
    answers = {way: _way(part, way, is_exclusive) for way in set(join)}
    ways = join if len(join) > 1 else [join[0]] * part.shape[1]
    return np.stack([answers[way][output] for output, way in enumerate(ways)])


def _way(part: NDArray[np.float64], way: Join, is_exclusive: bool) -> NDArray[np.float64]:
    if way == "noisy-or":
        if is_exclusive:
            chances = np.exp(part.clip(HOPELESS)).clip(max=SURE)
            none = np.log1p(-chances).sum(0)  # log-probability that no window has it
        else:
            none = -np.logaddexp(0, part.clip(HOPELESS)).sum(0)
        return np.log(-np.expm1(none)) - none
    return part[0] if way == "first" else part.max(0) if way == "max" else part.mean(0)
