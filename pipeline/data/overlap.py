"""Rows that say nearly the same, or of which one holds the other: found by the runs of words that they share.

A random slice of such rows leaks: a model is then judged by texts that it was trained on. Two rows are near each other
where at least half of the runs of one are runs of the other. Time and memory are linear in the words: a run that stands
in more than a hundred rows (a template's) is not compared, so that more than a hundred edits of one text are not seen.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]
ShortTexts = dict[int, Hashes]  # by how many words they have

WORDS_OF_A_RUN, _LEAST_WORDS = 5, 3
_COMMON = 100  # rows in which a run may stand
_NEAR = 0.5  # share of the runs of one row that another one has
_MOST_RUNS = 10_000_000  # beyond so many, every second one is left out, and so on: the same ones of all rows, by hash
_ROWS_AT_A_TIME = 2048
# A word; of scripts without spaces between words, a character.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Runs:
    """The runs of words of rows: which row has which, each once."""

    rows: int  # how many rows there are
    row: Ints  # (pairs,)
    run: Hashes  # (pairs,) a hash of the words
    halvings: int = 0  # how often every second run was left out, by its hash, since there were too many

    def of(self, chosen: Mask) -> "Runs":
        """The same without the runs of rows that are not chosen; rows keep their numbers."""
        kept = chosen[self.row]
        return Runs(self.rows, self.row[kept], self.run[kept], self.halvings)

    def halved(self, halvings: int) -> "Runs":
        """The same with so many halvings, or as it is where it has more."""
        if halvings <= self.halvings:
            return self
        kept = self.run % np.uint64(2**halvings) == 0
        return Runs(self.rows, self.row[kept], self.run[kept], halvings)


def short_texts(rows: Iterable[tuple[str, ...]]) -> ShortTexts:
    """The texts of three or four words among those of rows."""
    return _short_texts([_words_of(start, block) for start, block in _blocks(rows)])


def runs_of(rows: Iterable[tuple[str, ...]], beside: ShortTexts | None = None) -> Runs:
    """The runs of five words of rows, which have one text or two each. No run goes from one text to the other.

    A text of three or four words is a run by itself, which longer texts have too where they hold it; a shorter one says
    too little to have any.

    Args:
        rows: their texts.
        beside: short texts of other rows with which these are to be compared.
    """
    count, parts = 0, []
    for start, block in _blocks(rows):
        parts.append(_words_of(start, block))
        count = start + len(block)
    whole = _short_texts(parts)
    for length, others in (beside or {}).items():
        whole[length] = np.union1d(whole[length], others)
    found = Runs(count, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64))
    for part in parts:
        row, run = part.runs(whole)
        kept = run % np.uint64(2**found.halvings) == 0
        row, run = np.concatenate([found.row, row[kept]]), np.concatenate([found.run, run[kept]])
        found = Runs(count, row, run, found.halvings)
        while len(found.run) > _MOST_RUNS:
            found = found.halved(found.halvings + 1)
    return found


def near_rows(runs: Runs) -> tuple[Ints, Ints]:
    """The pairs of rows that are near each other, as two arrays of row numbers."""
    table, sizes = _tables(runs)[0]
    found, transposed = [np.zeros((2, 0), dtype=np.int64)], table.T.tocsr()
    for start in range(0, runs.rows, _ROWS_AT_A_TIME):
        shared = (table[start : start + _ROWS_AT_A_TIME] @ transposed).tocoo()
        first, second = shared.row.astype(np.int64) + start, shared.col.astype(np.int64)
        is_near = (first < second) & (shared.data >= _NEAR * np.minimum(sizes[first], sizes[second]))
        found.append(np.stack([first[is_near], second[is_near]]))
    first, second = np.concatenate(found, axis=1)
    return first, second


def nearest(runs: Runs, others: Runs) -> Ints:
    """For each row one of the other rows that is near it, by its number; -1 where none is."""
    (table, sizes), (other, other_sizes) = _tables(runs, others)
    transposed, found = other.T.tocsr(), np.full(runs.rows, -1, dtype=np.int64)
    for start in range(0, runs.rows, _ROWS_AT_A_TIME):
        shared = (table[start : start + _ROWS_AT_A_TIME] @ transposed).tocoo()
        first, second = shared.row.astype(np.int64) + start, shared.col.astype(np.int64)
        is_near = shared.data >= _NEAR * np.minimum(sizes[first], other_sizes[second])
        found[first[is_near]] = second[is_near]
    return found


def _tables(*both: Runs) -> list[tuple["csr_array", Ints]]:
    """Each as a table of rows and runs, without the runs that stand in many rows, and how many runs each row has with
    these."""
    from scipy.sparse import csr_array

    halvings = max(each.halvings for each in both)
    both = tuple(each.halved(halvings) for each in both)
    runs = np.concatenate([each.run for each in both])
    names, place, counts = np.unique(runs, return_inverse=True, return_counts=True)
    telling = counts <= _COMMON
    tables, start = [], 0
    for each in both:
        columns = place[start : start + len(each.run)]
        start += len(each.run)
        kept = telling[columns]
        ones = np.ones(int(kept.sum()), dtype=np.int32)
        table = csr_array((ones, (each.row[kept], columns[kept])), shape=(each.rows, len(names)))
        tables.append((table, np.bincount(each.row, minlength=each.rows)))
    return tables


def _blocks(rows: Iterable[tuple[str, ...]]) -> Iterator[tuple[int, list[tuple[str, ...]]]]:
    """Rows in blocks, each with the number of its first one."""
    iterator, start = iter(rows), 0
    while block := list(islice(iterator, _ROWS_AT_A_TIME)):
        yield start, block
        start += len(block)


@dataclass(frozen=True)
class _Words:
    """The words of the texts of some rows, one text after another."""

    words: Hashes  # (words,)
    lengths: Ints  # (texts,) words of each text
    row: Ints  # (texts,) the row of each text

    def hashed(self, length: int) -> tuple[Ints, Hashes]:
        """All runs of so many words: the text of each, and its hash."""
        text = np.repeat(np.arange(len(self.lengths)), self.lengths)
        ends = np.cumsum(self.lengths)[text]
        begins = np.flatnonzero(np.arange(len(self.words)) + length <= ends)
        runs = np.full(len(begins), length, dtype=np.uint64)
        for place in range(length):
            runs = (runs ^ self.words[begins + place]) * _FACTOR
        return text[begins], runs ^ (runs >> np.uint64(31))

    def whole(self, length: int) -> Hashes:
        """The runs that are a whole text of so many words."""
        text, runs = self.hashed(length)
        return runs[self.lengths[text] == length]

    def runs(self, whole: dict[int, Hashes]) -> tuple[Ints, Hashes]:
        """The rows' runs, each once a row: those of five words, and shorter ones that are a whole text somewhere."""
        rows, found = [], []
        for length in range(_LEAST_WORDS, WORDS_OF_A_RUN + 1):
            text, runs = self.hashed(length)
            if length < WORDS_OF_A_RUN:
                is_held = np.isin(runs, whole[length])
                text, runs = text[is_held], runs[is_held]
            rows.append(self.row[text])
            found.append(runs)
        row, run = np.concatenate(rows), np.concatenate(found)
        order = np.lexsort((run, row))
        row, run = row[order], run[order]
        first = np.ones(len(row), dtype=np.bool_)
        first[1:] = (row[1:] != row[:-1]) | (run[1:] != run[:-1])
        return row[first], run[first]


def _short_texts(parts: Iterable[_Words]) -> ShortTexts:
    parts = list(parts)
    return {
        length: np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *(part.whole(length) for part in parts)]))
        for length in range(_LEAST_WORDS, WORDS_OF_A_RUN)
    }


def _words_of(start: int, rows: list[tuple[str, ...]]) -> _Words:
    """The words of rows, of which the first has the number `start`; texts that are too short to have runs have none."""
    hashes: dict[str, int] = {}
    words: list[int] = []
    lengths: list[int] = []
    owners: list[int] = []
    for row, texts in enumerate(rows, start):
        for text in texts:
            found = _WORD.findall(text.lower())
            if len(found) >= _LEAST_WORDS:
                words += [hashes[word] if word in hashes else hashes.setdefault(word, _hash(word)) for word in found]
                lengths.append(len(found))
                owners.append(row)
    return _Words(np.array(words, dtype=np.uint64), np.array(lengths, dtype=np.int64), np.array(owners, dtype=np.int64))


def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
