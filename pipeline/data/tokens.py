"""Tokenises all splits once, in constant memory: truncated, unpadded.

`input_ids` has a row's windows end to end, `windows` their lengths.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kdc.artifact.manifest import LEAST_WINDOW, LongTexts, TokenizerInfo, longest_row
from kdc.common.errors import InputError, KdcError
from kdc.pipeline.config.data_settings import LongSettings
from kdc.pipeline.data.prepared import write_dataset
from kdc.pipeline.data.rows import texts_in
from kdc.pipeline.data.sources import SPLITS
from kdc.pipeline.results.data import Lengths, TokenCounts
from kdc.serving.engine.long_texts import Encoded, spread
from kdc.serving.engine.tokenizing import RowTokenizer

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

_BATCH_ROWS = 1024
_BATCH_CHARACTERS = 1 << 20
_BINS_TO_THE_CUT = 16  # the histogram reaches twice the cut


def tokenise(
    folder: Path,
    role: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    on_rows: Callable[[int, int], None] | None = None,
    long: LongTexts | None = None,
    out: Path | None = None,
) -> dict[str, TokenCounts]:
    """Tokenise every split like `tokenizer(text, pair, truncation=True, max_length=max_length)`, as serving does.

    Args:
        role: see `PreparedData.tokens`.
        on_rows: called with (rows done, all rows).
        long: windows for longer rows; None truncates.
        out: replaces `folder`.

    Raises:
        KdcError: the tokenizer is not fast.
    """
    import datasets
    from tokenizers import Tokenizer

    if not tokenizer.is_fast:
        what = "this model has no fast tokenizer, which serving needs"
        remedy = "use a model with a tokenizer.json, or install a converter: pip install sentencepiece tiktoken"
        raise KdcError(what, given=type(tokenizer).__name__, remedy=remedy)
    own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    cutter = RowTokenizer(own, max_length, getattr(tokenizer, "truncation_side", "right"), long)
    with_types = "token_type_ids" in tokenizer.model_input_names
    folders = {name: folder / "rows" / name for name in SPLITS}
    splits = {name: datasets.load_from_disk(str(path)) for name, path in folders.items() if path.is_dir()}
    total, done = sum(map(len, splits.values())), 0
    width, last_bin = -(-longest_row(max_length, long) // _BINS_TO_THE_CUT), 2 * _BINS_TO_THE_CUT
    out = (out or folder) / f"tokens-{role}"
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    counts = {}

    def tokenised(rows: datasets.Dataset, counted: Counter[str], bins: NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
        nonlocal done
        for batch in _batches(rows):
            encodings, lengths = cutter.encode_and_measure(texts_in(batch))
            counted["tokens"] += sum(map(len, encodings))
            counted["truncated"] += sum(bool(encoding.overflowing) for encoding in encodings)
            bins += np.bincount(np.minimum(np.array(lengths) // width, last_bin), minlength=last_bin + 1)
            yield _columns(batch, encodings, with_types=with_types, in_windows=long is not None)
            done += batch.num_rows
            if on_rows is not None:
                on_rows(done, total)

    for name, rows in splits.items():
        counted, bins = Counter[str](), np.zeros(last_bin + 1, dtype=np.int64)
        write_dataset(partial / name, tokenised(rows, counted, bins))
        histogram = Lengths(width=width, counts=tuple(bins.tolist()))
        counts[name] = TokenCounts(
            rows=len(rows), tokens=counted["tokens"], truncated=counted["truncated"], lengths=histogram
        )
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial, out)
    return counts


def windows_for(
    tokenizer: PreTrainedTokenizerBase, settings: LongSettings, max_length: int, *, is_pair: bool
) -> LongTexts | None:
    """None if rows are cut.

    Raises:
        InputError: windows too short, gaps between them, or `keep` too large.
    """
    long = settings.of(max_length)
    if long is None:
        return None
    most = max_length - tokenizer.num_special_tokens_to_add(pair=is_pair)
    if max_length < LEAST_WINDOW:
        problem, remedy = "windows of so few tokens hold too little", f"--set data.max_length={LEAST_WINDOW} or more"
    elif 2 * long.keep > most:
        problem, remedy = "long.keep leaves no room in a window", f"--set long.keep={most // 2} or less"
    elif long.stride > most - long.keep:
        problem, remedy = "text between two windows would be left out", f"--set long.stride={most - long.keep} or less"
    elif long.keep and tokenizer.truncation_side == "left":
        problem, remedy = "this tokenizer cuts the beginning of a text and cannot keep it", "--set long.keep=0"
    else:
        return long
    given = f"windows of {max_length} tokens, {settings.model_dump(exclude={'mode'})}"
    raise InputError(problem, given=given, remedy=remedy)


def apart(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The windows of tokenised rows."""
    windows = []
    for row in rows:
        tokens = {name: row[name] for name in ("input_ids", "token_type_ids") if name in row}
        ends = np.cumsum(row.get("windows", [len(row["input_ids"])])).tolist()
        for start, end in itertools.pairwise([0, *ends]):
            windows.append({name: values[start:end] for name, values in tokens.items()})
    return windows


def tokenizer_info(
    tokenizer: Any, *, max_length: int, token_type_ids: bool, long: LongTexts | None = None
) -> TokenizerInfo:
    return TokenizerInfo(
        max_length=max_length,
        pad_id=tokenizer.pad_token_id,
        pad_token=str(tokenizer.pad_token),
        token_type_ids=token_type_ids,
        pad_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        long=long,
    )


def _batches(rows: datasets.Dataset) -> Iterator[pa.Table]:
    for table in rows.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        sizes = pc.utf8_length(table["text"]).to_numpy()
        if "text_pair" in table.column_names:
            sizes = sizes + pc.utf8_length(table["text_pair"]).to_numpy()
        part = np.cumsum(sizes) // _BATCH_CHARACTERS
        starts = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), table.num_rows]
        for start, end in itertools.pairwise(starts):
            yield table.slice(start, end - start)


def _columns(batch: pa.Table, rows: Sequence[Encoded], *, with_types: bool, in_windows: bool) -> pa.RecordBatch:
    columns = {
        "row": batch["row"].combine_chunks(),
        "input_ids": pa.array([row.ids for row in rows], pa.list_(pa.int32())),
    }
    if with_types:
        columns["token_type_ids"] = pa.array([row.type_ids for row in rows], pa.list_(pa.int8()))
    columns["length"] = pa.array([len(row) for row in rows], pa.int32())
    if in_windows:
        windows = [[len(part) for part in spread([row])[0]] for row in rows]
        columns["windows"] = pa.array(windows, pa.list_(pa.int32()))
    if "label" in batch.column_names:
        columns["label"] = batch["label"].combine_chunks()
    return pa.RecordBatch.from_pydict(columns)
