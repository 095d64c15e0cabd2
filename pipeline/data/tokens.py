"""Tokenises all splits once: unpadded, truncated, special tokens included. Constant memory.

Reads: `rows/<split>/`. Writes: `tokens-<role>/<split>/`.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdc.common.errors import KdcError
from kdc.pipeline.data.rows import DatasetFolder
from kdc.pipeline.data.sources import SPLITS

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

_BATCH_ROWS = 1024
_BATCH_CHARACTERS = 1 << 20
_BINS_TO_THE_CUT = 16  # of the histogram of lengths; it goes to twice the cut


def tokenise(
    folder: Path,
    role: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    on_rows: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Tokenise the rows of every split, as `tokenizer(text, pair, truncation=True, max_length=max_length)` does.

    Args:
        folder: of the data stage.
        role: "teacher" or "student".
        tokenizer: a fast one.
        max_length: tokens after which a text, or both texts of a pair together, are cut.
        on_rows: called with (rows done, rows in all) after each batch.

    Returns:
        for each split: rows, tokens (after truncation), truncated (rows that were longer), lengths (rows by length
        before the cut: in `counts[i]` those of `i * width` tokens and more, in the last all that are longer still).

    Raises:
        KdcError: the tokenizer is not a fast one.
    """
    import datasets

    if not tokenizer.is_fast:
        raise KdcError(
            "this model has no fast tokenizer, which serving needs",
            given=type(tokenizer).__name__,
            remedy="use a model with a tokenizer.json, or install what converts it: pip install sentencepiece tiktoken",
        )
    splits = {
        name: datasets.load_from_disk(str(folder / "rows" / name))
        for name in SPLITS
        if (folder / "rows" / name).is_dir()
    }
    total, done = sum(len(rows) for rows in splits.values()), 0
    out, partial = folder / f"tokens-{role}", folder / f"tokens-{role}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    counts = {}
    for name, rows in splits.items():
        tokens = truncated = 0
        width = max(1, -(-max_length // _BINS_TO_THE_CUT))
        histogram = np.zeros(2 * _BINS_TO_THE_CUT + 1, dtype=np.int64)
        schema = _schema(rows, with_types="token_type_ids" in tokenizer.model_input_names)
        with DatasetFolder(partial / name, schema) as writer:
            for batch in _batches(rows):
                columns, lengths = _encode(batch, tokenizer, max_length)
                cut = sum(length > max_length for length in lengths)
                np.add.at(histogram, np.minimum(np.asarray(lengths) // width, len(histogram) - 1), 1)
                encoded = pa.RecordBatch.from_arrays(
                    [pa.array(columns[field.name], field.type) for field in schema], schema=schema
                )
                writer.write(encoded)
                tokens, truncated, done = tokens + sum(columns["length"]), truncated + cut, done + batch.num_rows
                if on_rows is not None:
                    on_rows(done, total)
        counts[name] = {
            "rows": len(rows),
            "tokens": tokens,
            "truncated": truncated,
            "lengths": {"width": width, "counts": histogram.tolist()},
        }
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial, out)
    return counts


def _schema(rows: datasets.Dataset, *, with_types: bool) -> pa.Schema:
    fields = [pa.field("row", pa.int64()), pa.field("input_ids", pa.list_(pa.int32()))]
    fields += [pa.field("token_type_ids", pa.list_(pa.int8()))] if with_types else []
    fields += [pa.field("length", pa.int32())]
    if "label" in rows.column_names:
        fields.append(rows.features.arrow_schema.field("label"))
    return pa.schema(fields)


def _batches(rows: datasets.Dataset) -> Iterator[pa.Table]:
    """At most 1,024 rows and about a million characters: a batch of long documents is a batch of few."""
    for table in rows.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        sizes = pc.utf8_length(table["text"]).to_numpy()
        if "text_pair" in table.column_names:
            sizes = sizes + pc.utf8_length(table["text_pair"]).to_numpy()
        part = np.cumsum(sizes) // _BATCH_CHARACTERS
        starts = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), table.num_rows]
        for start, end in itertools.pairwise(starts):
            yield table.slice(start, end - start)


def _encode(batch: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[dict[str, Any], list[int]]:
    """The token columns of a batch, and how long its rows were before the cut.

    The tokenizer itself is not asked to cut: it keeps every combination of the pieces that are cut off from the two
    texts of a pair, which is quadratic (6.5 GB and 18 s for one pair of 10,000 words cut to 64 tokens).
    """
    pairs = batch["text_pair"].to_pylist() if "text_pair" in batch.column_names else None
    encoded = tokenizer(
        batch["text"].to_pylist(), pairs, truncation=False, padding=False, return_attention_mask=False, verbose=False
    )
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    columns = {name: encoded[name] for name in names}
    lengths = [len(ids) for ids in columns["input_ids"]]
    for place, length in enumerate(lengths):
        if length > max_length:
            kept = kept_tokens(encoded.encodings[place].sequence_ids, max_length, from_left=_cuts_left(tokenizer))
            for name in names:
                values = columns[name][place]
                columns[name][place] = [values[at] for at in kept]
    others = {name: batch[name] for name in ("row", "label") if name in batch.column_names}
    columns["length"] = [len(ids) for ids in columns["input_ids"]]
    return {**columns, **{name: column.combine_chunks() for name, column in others.items()}}, lengths


def _cuts_left(tokenizer: PreTrainedTokenizerBase) -> bool:
    return getattr(tokenizer, "truncation_side", "right") == "left"


def kept_tokens(sequence_ids: Sequence[int | None], max_length: int, *, from_left: bool = False) -> list[int]:
    """Which tokens stay when a row is cut to `max_length`, "longest first": the longer text gives way first.

    Args:
        sequence_ids: (tokens,) 0 or 1 for tokens of the first or second text, None for special ones, which all stay.
        max_length: tokens to keep in all.
        from_left: cut at the beginning of the texts instead of at their end.

    Returns:
        places of the tokens that stay, ascending.
    """
    counts = [sum(owner == text for owner in sequence_ids) for text in (0, 1)]
    room = max(max_length - sum(owner is None for owner in sequence_ids), 0)
    shorter, longer = sorted(counts)
    if shorter + longer > room:
        # As in the tokenizers library: the longer text is cut down to the shorter at most, then both to halves.
        longer = max(shorter, room - shorter)
        if shorter + longer > room:
            shorter, longer = room // 2, room - room // 2
    keep = [shorter, longer] if counts[0] <= counts[1] else [longer, shorter]
    kept, seen = [], [0, 0]
    for place, owner in enumerate(sequence_ids):
        if owner is None:
            kept.append(place)
            continue
        first = counts[owner] - keep[owner] if from_left else 0
        if first <= seen[owner] < first + keep[owner]:
            kept.append(place)
        seen[owner] += 1
    return kept
