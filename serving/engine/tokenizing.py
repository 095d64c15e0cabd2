"""Texts to token ids and padded batches, as the artifact says. Needs the `tokenizers` library alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from kdc.artifact.manifest import TokenizerInfo
from kdc.common.errors import InputError, KdcError

Text = str | tuple[str, str]

_FEW_PIECES = 4  # so many may be cut off a text: cheaper than tokenising it twice to know where to cut


class RowTokenizer:
    """Rows to encodings, cut to the maximum length and not padded (`pad` does that). Several threads may call it.

    Args:
        tokenizer: it becomes this object's own.
        info: how rows are cut.
    """

    def __init__(self, tokenizer: Tokenizer, info: TokenizerInfo) -> None:
        self._cutting = tokenizer
        # The file carries settings of its own: all-MiniLM's pads every row to 128.
        tokenizer.no_padding()
        self._cutting.enable_truncation(info.max_length, strategy="longest_first", direction=info.truncation_side)
        self._most = info.max_length + 1  # one more than is kept, so that the cut is seen
        self._from_left = info.truncation_side == "left"

    @classmethod
    def read(cls, path: Path, info: TokenizerInfo) -> RowTokenizer:
        """From `tokenizer.json`.

        Raises:
            KdcError: the file cannot be read.
        """
        try:
            return cls(Tokenizer.from_file(str(path)), info)
        except Exception as error:  # tokenizers raises nothing narrower
            raise KdcError(
                "tokenizer.json cannot be read", given=f"{path}: {error}", remedy="make it again with `kdc compress`"
            ) from error

    def again(self, info: TokenizerInfo) -> RowTokenizer:
        """The same tokens, cut in another way. Reads no file: there may be another one by now."""
        return RowTokenizer(Tokenizer.from_str(self._cutting.to_str()), info)

    @functools.cached_property
    def _whole(self) -> Tokenizer:
        """The same without a cut. Only long texts need it, and it takes 15 MB and 50 ms."""
        whole = Tokenizer.from_str(self._cutting.to_str())
        whole.no_truncation()
        return whole

    def encode(self, rows: Sequence[Text]) -> list[Encoding]:
        """One encoding a row, special tokens included.

        Raises:
            InputError: a row has no token: it is empty, and the tokenizer adds none of its own.
        """
        encodings = self._cutting.encode_batch_fast([self._shortened(row) for row in rows])  # without offsets
        if not all(map(len, encodings)):
            empty = next(number for number, encoding in enumerate(encodings) if not len(encoding))
            raise InputError("a text has no tokens", given=f"row {empty}", remedy="send texts that are not empty")
        return encodings

    def _shortened(self, row: Text) -> Text:
        """The row without what the cut would drop anyway.

        The library keeps every piece that it cuts off, and for pairs every combination of pieces: two texts of 10,000
        words take gigabytes. Only the first `max_length` tokens of a text can be kept (the last, when cut from the
        left), so the words after those change nothing, as long as the longer text of a pair stays the longer one.
        """
        if max(map(len, (row,) if isinstance(row, str) else row)) <= _FEW_PIECES * self._most:
            return row  # no more tokens than characters, and so no more pieces than that
        if isinstance(row, str):
            return self._shorten(row, self._most)[0]
        first, second = (len(self._whole.encode(text, add_special_tokens=False)) for text in row)
        if first > second:
            short, kept = self._shorten(row[1], self._most)
            return self._shorten(row[0], max(self._most, kept + 1))[0], short
        short, kept = self._shorten(row[0], self._most)
        return short, self._shorten(row[1], max(self._most, kept + 1))[0]

    def _shorten(self, text: str, most: int) -> tuple[str, int]:
        """The text up to the end of the word that holds its token number `most`, and how many tokens that is."""
        encoding = self._whole.encode(text, add_special_tokens=False)
        count = len(encoding)
        if count <= most:
            return text, count
        words, offsets = encoding.word_ids, encoding.offsets
        if self._from_left:
            first = count - most
            while first > 0 and words[first - 1] == words[first]:
                first -= 1
            return text[offsets[first][0] :], count - first
        last = most - 1
        while last + 1 < count and words[last + 1] == words[last]:
            last += 1
        return text[: offsets[last][1]], last + 1


def pad(encodings: Sequence[Encoding], info: TokenizerInfo) -> dict[str, np.ndarray]:
    """Encodings of any lengths to the graph's inputs: int64 (rows, longest), 0 in the mask where padded."""
    longest = max(len(encoding) for encoding in encodings)
    fillers = {"input_ids": info.pad_id, "attention_mask": 0, "token_type_ids": info.pad_type_id}
    feeds = {name: np.full((len(encodings), longest), fillers[name], dtype=np.int64) for name in info.input_names}
    for row, encoding in enumerate(encodings):
        length = len(encoding)
        filled = slice(longest - length, longest) if info.pad_side == "left" else slice(0, length)
        feeds["input_ids"][row, filled] = encoding.ids
        feeds["attention_mask"][row, filled] = 1
        if info.token_type_ids:
            feeds["token_type_ids"][row, filled] = encoding.type_ids
    return feeds
