"""Finds near duplicates, which leak between random splits, and units of rows.

Rows are near if they share at least half of the shorter row's runs of words. Runs in over 100 rows (templates) are
ignored, so over 100 edits of one text go unnoticed.

Splits keep units whole, and confidence intervals take a unit's rows as dependent.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING
from unicodedata import normalize

import numpy as np
import numpy.typing as npt
import regex

from kdc.serving.engine.tokenizing import Text

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]

WORDS_OF_A_RUN, _LEAST_WORDS = 5, 3
_COMMON = 100
_NEAR = 0.5
_MOST_RUNS = 10_000_000  # halve by hash while there are more
_ROWS_AT_A_TIME = 2048
_NO_SPACES = r"\p{Han}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\u3040-\u30ff"
# A word, or a character of scripts without spaces, with its marks: `re` would end a Hindi word at one.
_WORD = regex.compile(rf"(?V1)[{_NO_SPACES}&&\w]\p{{M}}*|[\w--[{_NO_SPACES}]]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_PROMPT_ROWS, _PROMPT_PART = 20, 20  # a prompt exceeds both


@dataclass(frozen=True)
class Runs:
    """Each row's distinct runs of words."""

    rows: int
    row: Ints  # (pairs,)
    run: Hashes  # (pairs,) hash of the words
    short_texts: Hashes  # of three or four words
    halvings: int = 0  # how often half were dropped

    def of(self, chosen: Mask) -> "Runs":
        kept = chosen[self.row]
        return replace(self, row=self.row[kept], run=self.run[kept])

    def halved(self, halvings: int) -> "Runs":
        if halvings <= self.halvings:
            return self
        kept = self.run % np.uint64(2**halvings) == 0
        return replace(self, row=self.row[kept], run=self.run[kept], halvings=halvings)


def runs_of(rows: Iterable[Text], beside: Hashes | None = None) -> Runs:
    """Runs have five words of one text. A text of three or four words is a run itself, also inside longer texts.

    `beside` has the short texts of rows to compare with.
    """
    blocks = list(_blocks(rows))
    own = np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *(block.short_texts() for block in blocks)]))
    short = own if beside is None else np.union1d(own, beside)
    runs = Runs(sum(block.rows for block in blocks), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64), own)
    for block in blocks:
        row, run = block.runs(short)
        kept = run % np.uint64(2**runs.halvings) == 0
        runs = replace(runs, row=np.append(runs.row, row[kept]), run=np.append(runs.run, run[kept]))
        while len(runs.run) > _MOST_RUNS:
            runs = runs.halved(runs.halvings + 1)
    return runs


def near_rows(runs: Runs) -> tuple[Ints, Ints]:
    """Pairs of row numbers."""
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
    rows: int
    words: Hashes  # (words,)
    lengths: Ints  # (texts,)
    row: Ints  # (texts,) row number

    def hashed(self, length: int) -> tuple[Ints, Hashes]:
        text = np.repeat(np.arange(len(self.lengths)), self.lengths)
        ends = np.cumsum(self.lengths)[text]
        begins = np.flatnonzero(np.arange(len(self.words)) + length <= ends)
        runs = np.full(len(begins), length, dtype=np.uint64)
        for offset in range(length):
            runs = (runs ^ self.words[begins + offset]) * _FACTOR
        return text[begins], runs ^ (runs >> np.uint64(31))

    def short_texts(self) -> Hashes:
        every = ((length, *self.hashed(length)) for length in range(_LEAST_WORDS, WORDS_OF_A_RUN))
        return np.concatenate([runs[self.lengths[text] == length] for length, text, runs in every])

    def runs(self, short: Hashes) -> tuple[Ints, Hashes]:
        pairs = []
        for length in range(_LEAST_WORDS, WORDS_OF_A_RUN + 1):
            text, runs = self.hashed(length)
            kept = np.isin(runs, short) | (length == WORDS_OF_A_RUN)
            pairs.append(np.stack([self.row[text[kept]].astype(np.uint64), runs[kept]], axis=1))
        row, run = np.unique(np.concatenate(pairs), axis=0).T
        return row.astype(np.int64), run


def _blocks(rows: Iterable[Text]) -> Iterator[_Block]:
    from pandas.util import hash_array

    numbered = enumerate(rows)
    while block := list(islice(numbered, _ROWS_AT_A_TIME)):
        sides = ((number, text) for number, row in block for text in ((row,) if isinstance(row, str) else row))
        every = ((number, _WORD.findall(normalize("NFKC", text).lower())) for number, text in sides)
        texts = [(number, words) for number, words in every if len(words) >= _LEAST_WORDS]
        hashes = hash_array(np.array([word for _, words in texts for word in words], dtype=object))
        counts = np.array([(len(words), number) for number, words in texts], dtype=np.int64).reshape(-1, 2)
        yield _Block(len(block), hashes, counts[:, 0], counts[:, 1])


def connect(
    texts: Ints, sides: Ints | None = None, groups: Ints | None = None, near: tuple[Ints, Ints] | None = None
) -> Ints:
    """Number the units, (rows,): rows that share a text (or one of a pair) or group, or are near.

    Prompts (texts in over 1/20 of all pairs) and short texts (`fields.sides_of`) connect nothing. Numbers follow first
    rows.

    Args:
        texts: (rows,) hashes.
        sides: (rows, 2) hashes of a pair's texts.
        groups: (rows,) hashes.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = len(texts)
    ties = [(texts, rows)]  # hashes; most rows one may connect
    if sides is not None:
        ties.append((sides.T.reshape(-1), max(_PROMPT_ROWS, rows // _PROMPT_PART)))
    if groups is not None:
        ties.append((groups, rows))
    edges = [] if near is None else [near]
    for numbers, most in ties:
        _, first, inverse, counts = np.unique(numbers, return_index=True, return_inverse=True, return_counts=True)
        tied = np.flatnonzero(counts[inverse] <= most)
        edges.append((tied % rows, first[inverse[tied]] % rows))  # to the first with this hash
    row, other = (np.concatenate(ends) for ends in zip(*edges, strict=True))
    graph = coo_array((np.ones(len(row), dtype=np.int8), (row, other)), shape=(rows, rows))
    return connected_components(graph, directed=False)[1].astype(np.int64)
