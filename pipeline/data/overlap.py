"""Finds near-duplicate rows, which leak between random splits, by shared runs of words.

Rows are near if they share at least half of the shorter row's runs. Time and memory are linear in the words. Runs in
over 100 rows (templates) are ignored, so over 100 edits of one text go unnoticed.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kdc.pipeline.data.units import Ints
from kdc.serving.engine.tokenizing import Text

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Mask = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]
ShortTexts = dict[int, Hashes]  # by number of words

WORDS_OF_A_RUN, _LEAST_WORDS = 5, 3
_COMMON = 100
_NEAR = 0.5
_MOST_RUNS = 10_000_000  # halve by hash while there are more
_ROWS_AT_A_TIME = 2048
# A word, or a character of scripts without spaces.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Runs:
    """Each row's distinct runs of words."""

    rows: int
    row: Ints  # (pairs,)
    run: Hashes  # (pairs,) hash of the words
    short_texts: ShortTexts
    halvings: int = 0  # how often half were dropped

    def of(self, chosen: Mask) -> "Runs":
        """Keep the chosen rows' runs; rows keep their numbers."""
        kept = chosen[self.row]
        return replace(self, row=self.row[kept], run=self.run[kept])

    def halved(self, halvings: int) -> "Runs":
        """Halve until `halvings`."""
        if halvings <= self.halvings:
            return self
        kept = self.run % np.uint64(2**halvings) == 0
        return replace(self, row=self.row[kept], run=self.run[kept], halvings=halvings)


def runs_of(rows: Iterable[Text], beside: ShortTexts | None = None) -> Runs:
    """Collect runs of five words, within one text of a pair.

    A text of three or four words is a run itself, also inside longer texts. Shorter texts have none. `beside` has short
    texts of rows to compare with.
    """
    blocks = list(_blocks(rows))
    own = _short_texts(blocks)
    short = {length: np.union1d(texts, beside[length]) if beside else texts for length, texts in own.items()}
    runs = Runs(sum(block.rows for block in blocks), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64), own)
    for block in blocks:
        row, run = block.runs(short)
        kept = run % np.uint64(2**runs.halvings) == 0
        runs = replace(runs, row=np.append(runs.row, row[kept]), run=np.append(runs.run, run[kept]))
        while len(runs.run) > _MOST_RUNS:
            runs = runs.halved(runs.halvings + 1)
    return runs


def near_rows(runs: Runs) -> tuple[Ints, Ints]:
    """The pairs of near rows, as two arrays."""
    (table,) = _tables(runs)
    pairs = [np.zeros((2, 0), dtype=np.int64)]
    for row, other in _near(table, table):
        pairs.append(np.stack([row, other])[:, row < other])
    first, second = np.concatenate(pairs, axis=1)
    return first, second


def nearest(runs: Runs, others: Runs) -> Ints:
    """For each row a near one of `others`; -1 if none."""
    numbers = np.full(runs.rows, -1, dtype=np.int64)
    for row, other in _near(*_tables(runs, others)):
        numbers[row] = other
    return numbers


_Table = tuple["csr_array", Ints]  # (rows, runs) ones, and runs per row, common ones included


def _near(one: _Table, others: _Table) -> Iterator[tuple[Ints, Ints]]:
    """Yield near rows and others, (pairs,) each, by block."""
    (table, sizes), (other_table, other_sizes) = one, others
    transposed = other_table.T.tocsr()
    for start in range(0, len(sizes), _ROWS_AT_A_TIME):
        shared = (table[start : start + _ROWS_AT_A_TIME] @ transposed).tocoo()
        row, other = shared.row.astype(np.int64) + start, shared.col.astype(np.int64)
        is_near = shared.data >= _NEAR * np.minimum(sizes[row], other_sizes[other])
        yield row[is_near], other[is_near]


def _tables(*several: Runs) -> list[_Table]:
    from scipy.sparse import csr_array

    halvings = max(runs.halvings for runs in several)
    several = tuple(runs.halved(halvings) for runs in several)
    every_run = np.concatenate([runs.run for runs in several])
    names, column, counts = np.unique(every_run, return_inverse=True, return_counts=True)
    tables, start = [], 0
    for runs in several:
        columns = column[start : start + len(runs.run)]
        start += len(runs.run)
        kept = counts[columns] <= _COMMON
        ones = np.ones(int(kept.sum()), dtype=np.int32)
        table = csr_array((ones, (runs.row[kept], columns[kept])), shape=(runs.rows, len(names)))
        tables.append((table, np.bincount(runs.row, minlength=runs.rows)))
    return tables


@dataclass(frozen=True)
class _Block:
    """The words of a block's texts, end to end, without the shortest texts."""

    rows: int
    words: Hashes  # (words,)
    lengths: Ints  # (texts,)
    row: Ints  # (texts,) row number

    def hashed(self, length: int) -> tuple[Ints, Hashes]:
        """All runs of `length` words: text and hash."""
        text = np.repeat(np.arange(len(self.lengths)), self.lengths)
        ends = np.cumsum(self.lengths)[text]
        begins = np.flatnonzero(np.arange(len(self.words)) + length <= ends)
        runs = np.full(len(begins), length, dtype=np.uint64)
        for offset in range(length):
            runs = (runs ^ self.words[begins + offset]) * _FACTOR
        return text[begins], runs ^ (runs >> np.uint64(31))

    def runs(self, short: ShortTexts) -> tuple[Ints, Hashes]:
        rows, hashes = [], []
        for length in range(_LEAST_WORDS, WORDS_OF_A_RUN + 1):
            text, runs = self.hashed(length)
            kept = np.isin(runs, short[length]) if length in short else np.ones(len(runs), dtype=np.bool_)
            rows.append(self.row[text[kept]])
            hashes.append(runs[kept])
        row, run = np.concatenate(rows), np.concatenate(hashes)
        order = np.lexsort((run, row))
        row, run = row[order], run[order]
        first = np.ones(len(row), dtype=np.bool_)
        first[1:] = (row[1:] != row[:-1]) | (run[1:] != run[:-1])
        return row[first], run[first]


def _short_texts(blocks: list[_Block]) -> ShortTexts:
    short: ShortTexts = {}
    for length in range(_LEAST_WORDS, WORDS_OF_A_RUN):
        parts = [np.zeros(0, dtype=np.uint64)]
        for block in blocks:
            text, runs = block.hashed(length)
            parts.append(runs[block.lengths[text] == length])
        short[length] = np.unique(np.concatenate(parts))
    return short


def _blocks(rows: Iterable[Text]) -> Iterator[_Block]:
    numbered = enumerate(rows)
    while block := list(islice(numbered, _ROWS_AT_A_TIME)):
        hashes: dict[str, int] = {}
        every_word: list[int] = []
        lengths: list[int] = []
        owners: list[int] = []
        for number, row in block:
            for text in (row,) if isinstance(row, str) else row:
                words = _WORD.findall(text.lower())
                if len(words) >= _LEAST_WORDS:
                    hashes |= {word: _hash(word) for word in words if word not in hashes}
                    every_word += [hashes[word] for word in words]
                    lengths.append(len(words))
                    owners.append(number)
        arrays = np.array(every_word, dtype=np.uint64), np.array(lengths, dtype=np.int64), np.array(owners, np.int64)
        yield _Block(len(block), *arrays)


def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
