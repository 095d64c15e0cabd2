"""Rows of more tokens than a model takes at once: windows over their tokens, and one answer made of the windows'.

Needs numpy and the manifest's models alone. `kdc.pipeline.training.joining` joins tensors by the same formulas.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from kdc.artifact.manifest import Join, Kind, LongTexts

# Bounds of a window's log-probability or log-odds where chances are multiplied: beyond them logarithms are infinite.
SURE, HOPELESS = 1 - 1e-6, -60.0


@dataclass(frozen=True, slots=True)
class Tokens:
    """A row, or a window of one; to be used like the library's `Encoding`."""

    ids: list[int]  # (tokens,) token ids, special tokens included
    type_ids: list[int]  # (tokens,) 0 for the first text, 1 for the second
    overflowing: bool = False  # whether it was cut; an `Encoding` has here the pieces that were cut off

    def __len__(self) -> int:
        return len(self.ids)


Part: TypeAlias = Encoding | Tokens  # what a forward pass takes as one of its rows


@dataclass(frozen=True, slots=True)
class Windows:
    """A row that is answered by several windows."""

    parts: tuple[Tokens, ...]
    row_tokens: int  # tokens of the row that was divided, each counted once
    overflowing: bool  # whether the row had more tokens than its windows hold

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def ids(self) -> list[int]:
        """(tokens,) token ids of all windows, one after another."""
        return [token for part in self.parts for token in part.ids]

    @property
    def type_ids(self) -> list[int]:
        """(tokens,) the same of token types."""
        return [kind for part in self.parts for kind in part.type_ids]


Encoded: TypeAlias = Part | Windows  # a row


def row_tokens(row: Encoded) -> int:
    """Tokens of a row, each counted once; `len` counts those that neighbouring windows share for each of these."""
    return row.row_tokens if isinstance(row, Windows) else len(row)


def spread(rows: Sequence[Encoded]) -> tuple[list[Part], list[int]]:
    """What forward passes take of some rows, in order, and how many parts each row has."""
    if Windows not in set(map(type, rows)):  # as nearly always
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

    Every window has the special tokens, the shorter text of a pair, and the tokens of the other text that are to be
    kept. Each of the latter two takes at most half of the room. The last window ends at the end of the text.

    Args:
        ids, type_ids: (tokens,) of the row, special tokens included.
        owners: (tokens,) 0 or 1 for tokens of the first or second text, None for special tokens.
        max_length: tokens of a window.
        long: how far apart windows begin, how many there are at most, and how many tokens are kept in each.
        overflowing: whether the row was cut before.
        from_left: whether the beginning of what is too long is cut instead of its end.
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
    """Make one answer for each row from its windows' answers. A row of one window keeps its answer as it is.

    A window's answers are log-probabilities of classes, which no constant moves, or log-odds of labels. "mean" is their
    mean, "max" the highest for each label, "first" the first window's. "noisy-or" is the log-odds that a label is in
    any window if windows are independent (Pearl 1988).

    Args:
        logits: (parts, outputs), the parts of a row one after another.
        counts: (rows,) how many parts each row has; their sum is the number of parts.
        join: the way of each output, or one for all.
        kind: the task's kind; a regression's numbers have no "noisy-or".

    Returns:
        float32 (rows, outputs).
    """
    if len(counts) == len(logits):
        return np.asarray(logits, dtype=np.float32)
    ends = np.cumsum(counts)
    rows = np.empty((len(counts), logits.shape[1]), dtype=np.float32)
    for row, (end, count) in enumerate(zip(ends, counts, strict=True)):
        part = logits[end - count : end]
        rows[row] = part[0] if count == 1 else _joined(part.astype(np.float64), join, kind)
    return rows


def _joined(part: NDArray[np.float64], join: Sequence[Join], kind: Kind) -> NDArray[np.float64]:
    """The answer (outputs,) of one row from its windows' logits (windows, outputs)."""
    if kind == "classification":
        part = part - np.logaddexp.reduce(part, axis=1, keepdims=True)
    answers = {way: _way(part, way, kind) for way in set(join)}
    ways = join if len(join) > 1 else [join[0]] * part.shape[1]
    return np.stack([answers[way][output] for output, way in enumerate(ways)])


def _way(part: NDArray[np.float64], way: Join, kind: Kind) -> NDArray[np.float64]:
    if way == "noisy-or":
        if kind == "classification":
            chances = np.exp(part.clip(HOPELESS)).clip(max=SURE)
            none = np.log1p(-chances).sum(0)  # the logarithm of the chance that no window has it
        else:
            none = -np.logaddexp(0, part.clip(HOPELESS)).sum(0)
        return np.log(-np.expm1(none)) - none
    return part[0] if way == "first" else part.max(0) if way == "max" else part.mean(0)
