"""More texts for the teacher to answer: the training texts with some of their words left out.

A student that is cut needs more texts than a teacher to come near it, above all long ones, and people often have no
unlabelled ones. A text without some words is still much like a real one, and the teacher says what it makes of it, so
that no label has to be kept right (a word less may turn a label round; word dropout as in EDA, Wei and Zou 2019,
arXiv 1901.11196).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.reading.rows import DatasetFolder

if TYPE_CHECKING:
    import datasets

_SHARE = 0.15  # of the words that are left out
_SHORTEST = 4  # words; a shorter text would lose its meaning
_BATCH_ROWS = 1024


def write_augmented(rows: datasets.Dataset, folder: Path, *, copies: int, seed: int, first_row: int) -> int:
    """Write the split `augmented`: of every training row so many versions, each with other words left out.

    Args:
        rows: the split `train`.
        folder: of the new split.
        copies: versions of each row. A row whose texts are all short has none.
        seed: chooses the words.
        first_row: number of the first row.

    Returns:
        How many rows were written.
    """
    names = [name for name in ("text", "text_pair") if name in rows.column_names]
    schema = pa.schema([pa.field("row", pa.int64()), *(pa.field(name, pa.string()) for name in names)])
    random = np.random.default_rng([seed, copies])
    written = 0
    with DatasetFolder(folder, schema) as out:
        for _ in range(copies):
            for start in range(0, len(rows), _BATCH_ROWS):
                batch = rows[start : start + _BATCH_ROWS]
                before = list(zip(*(batch[name] for name in names), strict=True))
                after = [tuple(without_words(text, random) for text in texts) for texts in before]
                kept = [texts for texts, old in zip(after, before, strict=True) if texts != old]
                numbers = range(first_row + written, first_row + written + len(kept))
                columns = {"row": list(numbers)} | {
                    name: [texts[place] for texts in kept] for place, name in enumerate(names)
                }
                out.write(pa.RecordBatch.from_pydict(columns, schema=schema))
                written += len(kept)
    if not written:
        shutil.rmtree(folder)
    return written


def without_words(text: str, random: np.random.Generator) -> str:
    """The text without some of its words, at least one; a short text stays as it is."""
    words = text.split()
    if len(words) < _SHORTEST:
        return text
    kept = random.random(len(words)) >= _SHARE
    if kept.all() or not kept.any():
        kept[:] = True
        kept[random.integers(len(words))] = False
    return " ".join(word for word, stays in zip(words, kept, strict=True) if stays)
