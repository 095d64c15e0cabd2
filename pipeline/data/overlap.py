"""Rows that say nearly the same, or of which one holds the other: found by the runs of words that they share.

A random slice of such rows leaks: a model is then judged by texts that it was trained on. Two rows are near each other
where at least half of the runs of one are runs of the other. Time and memory are linear in the words: a run that stands
in many rows says nothing of any of them, and is left out.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

WORDS_OF_A_RUN, _LEAST_WORDS = 5, 3
_COMMON = 30  # rows in which a run may stand
_NEAR = 0.5  # share of the runs of one row that another one has
_MOST_RUNS = 10_000_000  # beyond so many, every second one is left out, and so on: the same ones of all rows
_ROWS_AT_A_TIME = 2048
# A word; of scripts without spaces between words, a character.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Runs:
    """The runs of words of rows: which row has which, each once."""

    rows: int  # how many rows there are
    row: Ints  # (pairs,)
    run: npt.NDArray[np.uint64]  # (pairs,) a hash of the words

    def of(self, chosen: Mask) -> "Runs":
        """The same without the runs of rows that are not chosen; rows keep their numbers."""
        kept = chosen[self.row]
        return Runs(self.rows, self.row[kept], self.run[kept])


def runs_of(rows: Iterable[tuple[str, ...]]) -> Runs:
    """The runs of five words of rows, which have one text or two each. No run goes from one text to the other.

    A text of three or four words is a run by itself, which longer texts have too where they hold it; a shorter one says
    too little to have any.
    """
    hashes: dict[str, int] = {}
    words: list[int] = []
    lengths: list[int] = []
    owners: list[int] = []
    count = 0
    for count, texts in enumerate(rows, start=1):
        for text in texts:
            found = _WORD.findall(text.lower())
            if len(found) >= _LEAST_WORDS:
                words += [hashes[word] if word in hashes else hashes.setdefault(word, _hash(word)) for word in found]
                lengths.append(len(found))
                owners.append(count - 1)
    values, sizes = np.array(words, dtype=np.uint64), np.array(lengths, dtype=np.int64)
    row, run = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
    for length in range(_LEAST_WORDS, WORDS_OF_A_RUN + 1):
        place, hashed = _hashed(values, sizes, length)
        if length < WORDS_OF_A_RUN:
            is_held = np.isin(hashed, hashed[sizes[place] == length])
            place, hashed = place[is_held], hashed[is_held]
        row, run = np.concatenate([row, np.array(owners, dtype=np.int64)[place]]), np.concatenate([run, hashed])
    while len(run) > _MOST_RUNS:
        kept = run % np.uint64(2) == 0
        run, row = run[kept] >> np.uint64(1), row[kept]
    order = np.lexsort((run, row))
    row, run = row[order], run[order]
    first = np.ones(len(row), dtype=np.bool_)
    first[1:] = (row[1:] != row[:-1]) | (run[1:] != run[:-1])
    return Runs(count, row[first], run[first])


def _hashed(words: npt.NDArray[np.uint64], lengths: Ints, length: int) -> tuple[Ints, npt.NDArray[np.uint64]]:
    """All runs of so many words, of texts whose words stand one after another: the text of each, and its hash."""
    text = np.repeat(np.arange(len(lengths)), lengths)
    ends = np.cumsum(lengths)[text]
    begins = np.flatnonzero(np.arange(len(words)) + length <= ends)
    runs = np.full(len(begins), length, dtype=np.uint64)
    for place in range(length):
        runs = (runs ^ words[begins + place]) * _FACTOR
    return text[begins], runs ^ (runs >> np.uint64(31))


def near_rows(runs: Runs) -> tuple[Ints, Ints]:
    """The pairs of rows that are near each other, as two arrays of row numbers."""
    table = _table(runs, runs)[0]
    sizes, transposed = np.asarray(table.sum(axis=1)).reshape(-1), table.T.tocsr()
    found = []
    for start in range(0, runs.rows, _ROWS_AT_A_TIME):
        shared = (table[start : start + _ROWS_AT_A_TIME] @ transposed).tocoo()
        first, second = shared.row.astype(np.int64) + start, shared.col.astype(np.int64)
        is_near = (first < second) & (shared.data >= _NEAR * np.minimum(sizes[first], sizes[second]))
        found.append(np.stack([first[is_near], second[is_near]]))
    first, second = np.concatenate(found, axis=1) if found else np.zeros((2, 0), dtype=np.int64)
    return first, second


def nearest(runs: Runs, others: Runs) -> Ints:
    """For each row one of the other rows that is near it, by its number; -1 where none is."""
    table, other = _table(runs, others)
    sizes, other_sizes = (np.asarray(each.sum(axis=1)).reshape(-1) for each in (table, other))
    transposed, found = other.T.tocsr(), np.full(runs.rows, -1, dtype=np.int64)
    for start in range(0, runs.rows, _ROWS_AT_A_TIME):
        shared = (table[start : start + _ROWS_AT_A_TIME] @ transposed).tocoo()
        first, second = shared.row.astype(np.int64) + start, shared.col.astype(np.int64)
        is_near = shared.data >= _NEAR * np.minimum(sizes[first], other_sizes[second])
        found[first[is_near]] = second[is_near]
    return found


def _table(runs: Runs, others: Runs) -> tuple["csr_array", "csr_array"]:
    """Both as tables of rows and runs, without the runs that stand in many rows of either."""
    from scipy.sparse import csr_array

    both = (runs,) if others is runs else (runs, others)
    names, place, counts = np.unique(
        np.concatenate([each.run for each in both]), return_inverse=True, return_counts=True
    )
    telling = counts <= _COMMON
    tables, start = [], 0
    for each in both:
        columns = place[start : start + len(each.run)]
        start += len(each.run)
        kept = telling[columns]
        ones = np.ones(int(kept.sum()), dtype=np.int32)
        tables.append(csr_array((ones, (each.row[kept], columns[kept])), shape=(each.rows, len(names))))
    return tables[0], tables[-1]


def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
