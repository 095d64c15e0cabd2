"""Texts to token ids and padded batches."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
from tokenizers import Encoding, Tokenizer, models, pre_tokenizers

from kdc.artifact.manifest import LongTexts, TaskInfo, TokenizerInfo, longest_row
from kdc.common.errors import InputError, KdcError
from kdc.serving.engine.long_texts import Encoded, Tokens, spread, windows_of
from kdc.serving.engine.word_pieces import WordPieces

Text = str | tuple[str, str]

# The library cuts texts of up to this many times the maximum length.
_FEW_PIECES = 4
_MOST_TOKENS = 33  # per character: NFKC makes 18 letters, 33 bytes, of U+FDFA
_SHORT_TEXT = 10  # words, in `row_of`
# Characters read first per kept token.
_CHARACTERS = 8
_MOST_READ = 4  # times the first part, if no space is found
# Most tokens at a part's cut that the whole text may lack.
_MARGIN = 32


def is_utf8(text: str) -> bool:
    """False for a lone surrogate, on which the tokenizer fails without naming the row."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_blank(text: str) -> bool:
    return not text or text.isspace()


def as_row(texts: Sequence[str]) -> Text:
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])


def checked_rows(texts: Sequence[Text], task: TaskInfo, first: int = 0) -> list[Text]:
    """Raises InputError if a row is not one text (two for a pair task), or a text is blank or not Unicode."""
    if isinstance(texts, str):
        raise InputError("the texts are one string, not a list", given="str", remedy='give a list: ["..."]')
    width = 2 if task.is_pair else 1
    columns = f"two texts a row ({task.text}, {task.text_pair})" if task.is_pair else f"one text a row ({task.text})"
    rows: list[Text] = []
    for number, row in enumerate(texts, first):
        parts = (row,) if isinstance(row, str) else tuple(row) if isinstance(row, tuple | list) else ()
        if len(parts) != width or isinstance(row, str) is task.is_pair:
            raise InputError(
                f"the task {task.name} takes {columns}",
                given=f"row {number}: {type(row).__name__} with {len(parts)} text(s)",
                remedy='give ("first text", "second text")' if task.is_pair else 'give "text"',
            )
        if not all(isinstance(part, str) and is_utf8(part) for part in parts):
            raise InputError("a text is not valid Unicode", given=f"row {number}", remedy="give str, UTF-8 encodable")
        if any(map(is_blank, parts)):
            raise InputError("a text is empty", given=f"row {number}", remedy="give more than white space")
        rows.append(as_row(parts))
    return rows


@contextmanager
def _library_errors(what: str, path: Path | None = None) -> Iterator[None]:
    """Raise `KdcError`. Rust panics are no `Exception`. Messages about rows may hold texts, so they are dropped."""
    try:
        yield
    except (KdcError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        given = type(error).__name__ if path is None else f"{path}: {error}"
        raise KdcError(what, given=given, remedy="make tokenizer.json again with `kdc compress`") from error


class RowTokenizer:
    """Tokenises rows, and cuts long ones or divides them into windows. Thread-safe.

    Results equal the library's truncation ("longest_first"), which takes gigabytes for two texts of 10,000 words. This
    class reads little more than it keeps, if the tokenizer splits texts into words. If both texts of a pair are longer
    than it reads (32 * (`max_length` + 32) characters), the odd token may come from the shorter text.

    Args:
        tokenizer: its settings change, so nothing else may use it.
        max_length: tokens of a cut row or a window, special tokens included.
        truncation_side: "right" cuts a text's end.
        long: None cuts longer rows.
    """

    def __init__(
        self, tokenizer: Tokenizer, max_length: int, truncation_side: str = "right", long: LongTexts | None = None
    ) -> None:
        self._cutting = tokenizer
        self._max_length, self._long = max_length, long
        self._longest = longest_row(max_length, long)
        # all-MiniLM's tokenizer.json pads every row to 128 tokens.
        tokenizer.no_padding()
        tokenizer.no_truncation()  # for `WordPieces.of`
        self._words = WordPieces.of(tokenizer, max_length)
        tokenizer.enable_truncation(self._longest, strategy="longest_first", direction=truncation_side)
        self._side = truncation_side
        # An ASCII character makes at most one token.
        self._first_part = _CHARACTERS * (self._longest + _MARGIN)  # characters
        self._most_read = _MOST_READ * self._first_part
        self._few_characters = _FEW_PIECES * (self._longest + 1)

    @classmethod
    def read(cls, path: Path, info: TokenizerInfo, read: Callable[[Path], bytes] = Path.read_bytes) -> Self:
        """Parse `tokenizer.json`."""
        content = read(path)
        with _library_errors("tokenizer.json cannot be read", path):
            return cls(Tokenizer.from_buffer(content), info.max_length, info.truncation_side, info.long)

    def cutting(self, side: str | None) -> "RowTokenizer":
        """A tokenizer that cuts `side`. The first call for the other side takes 60 to 500 ms."""
        return self if side in (None, self._side) else self._other_side

    def has_cut(self, side: str | None) -> bool:
        """Whether `cutting(side)` returns at once."""
        return side in (None, self._side) or "_other_side" in self.__dict__

    def encode(self, rows: Sequence[Text], first: int = 0, *, beside: bool = False) -> list[Encoded]:
        """Tokenise rows with special tokens, and cut them. `overflowing` is truthy if a row was cut.

        Args:
            first: number of the first row in messages.
            beside: let other threads run, by not using the faster word table.
        """
        with _library_errors("the tokenizer failed on these texts"):
            encodings = self._encode(rows, beside)
        if not all(map(len, encodings)):
            empty = next(number for number, encoding in enumerate(encodings) if not len(encoding))
            raise InputError(
                "a text has no tokens", given=f"row {first + empty}", remedy="send texts that are not empty"
            )
        return encodings

    def _encode(self, rows: Sequence[Text], beside: bool) -> list[Encoded]:
        def without_the_library(row: Text) -> Encoded | None:
            if self._is_long(row):
                return self._encode_long(row, self._words)
            return None if beside or self._words is None else self._words.encode(row)

        encodings = list(map(without_the_library, rows))
        rest = [row for row, encoding in zip(rows, encodings, strict=True) if encoding is None]
        others = map(self._cut, self._cutting.encode_batch_fast(rest)) if rest else iter(())  # "fast": no offsets
        return [next(others) if encoding is None else encoding for encoding in encodings]

    def _encode_long(self, row: Text, squeezing: WordPieces | None = None) -> Encoded:
        texts = (row,) if isinstance(row, str) else row
        for parts, strays in self._attempts(texts, once=squeezing is not None):
            (encoding,) = self._whole.encode_batch_fast([as_row(parts)])
            if self._is_enough(encoding, parts, texts, strays):
                return self._cut(encoding)
        if squeezing is not None:
            return self._encode_long(as_row([squeezing.squeezed(text) for text in texts]))
        return self._cut(*self._whole.encode_batch_fast([row]))

    def _attempts(self, texts: Sequence[str], *, once: bool) -> Iterator[tuple[Sequence[str], Sequence[int]]]:
        """Parts of texts that may hold all kept tokens, each with its strays (see `_part`)."""
        most = self._first_part
        while self._splits_words:
            parts, strays = zip(*(self._part(text, most) for text in texts), strict=True)
            uncut = [text for part, text in zip(parts, texts, strict=True) if part is text]
            if len(uncut) != len(texts) - 1 or any(len(text) > most for text in uncut):
                break
            yield parts, strays
            if once:
                return
            most *= 4
        # An endless word takes seconds and gigabytes.
        parts = tuple(text[-self._most_read :] if self._side == "left" else text[: self._most_read] for text in texts)
        if not once and parts != texts:
            yield parts, [_MARGIN + (self._word_tokens or 0)] * len(parts)

    def _is_enough(self, encoding: Encoding, parts: Sequence[str], texts: Sequence[str], strays: Sequence[int]) -> bool:
        """Whether all kept tokens are there. An uncut text must be the shorter one."""
        owners = encoding.sequence_ids
        whole = [len(part) == len(text) for part, text in zip(parts, texts, strict=True)]
        least = max([self._longest, *(owners.count(text) for text, is_whole in enumerate(whole) if is_whole)])
        return all(is_whole or owners.count(text) - strays[text] >= least for text, is_whole in enumerate(whole))

    def chars_read(self, rows: Sequence[Text]) -> list[int]:
        """Characters read of each row, if a first part is enough."""

        def of_row(row: Text) -> int:
            shorter, longer = ("", row) if isinstance(row, str) else sorted(row, key=len)
            is_part_enough = self._splits_words and len(shorter) <= self._first_part
            most = self._first_part if is_part_enough else self._most_read
            return min(len(shorter), self._most_read) + min(len(longer), most)

        return list(map(of_row, rows))

    def _part(self, text: str, most: int) -> tuple[str, int]:
        """At most `most` characters, and strays: tokens at the cut that the whole text may lack."""
        if len(text) <= most:
            return text, 0
        left = self._side == "left"
        start, end = (len(text) - most, len(text) - most // 2) if left else (most // 2, most)
        while (space := text.find(" ", start, end) if left else text.rfind(" ", start, end)) >= 0:
            if not text[space - 1 : space].isspace() and not text[space + 1 : space + 2].isspace():
                return (text[space:] if left else text[:space]), _MARGIN
            start, end = (space + 1, end) if left else (start, space)
        if self._word_tokens is None:
            return text, 0
        return (text[-most:] if left else text[:most]), _MARGIN + self._word_tokens

    @functools.cached_property
    def _word_tokens(self) -> int | None:
        model = self._cutting.model
        is_bert = isinstance(self._cutting.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        return model.max_input_chars_per_word if is_bert and isinstance(model, models.WordPiece) else None

    @functools.cached_property
    def _splits_words(self) -> bool:
        """Otherwise a word's tokens depend on its neighbours."""
        before = self._cutting.pre_tokenizer
        return before is not None and len(before.pre_tokenize_str("word word")) > 1

    def encode_and_measure(self, rows: Sequence[Text]) -> tuple[list[Encoded], list[int]]:
        """Like `encode`, with each row's number of tokens before the cut."""
        whole = self._whole.encode_batch_fast(rows)
        return [self._cut(encoding) for encoding in whole], [len(encoding) for encoding in whole]

    def _is_long(self, row: Text) -> bool:
        if isinstance(row, str):
            return len(row) > self._few_characters
        return any(len(text) * (1 if text.isascii() else _MOST_TOKENS) > self._few_characters for text in row)

    @functools.cached_property
    def _other_side(self) -> "RowTokenizer":
        """Copied from memory, because the file may have changed."""
        return RowTokenizer(self._copy(), self._max_length, "right" if self._side == "left" else "left", self._long)

    @functools.cached_property
    def _whole(self) -> Tokenizer:
        """Takes 15 MB and 50 ms; only long texts need it."""
        whole = self._copy()
        whole.no_truncation()
        return whole

    def _copy(self) -> Tokenizer:
        return Tokenizer.from_str(self._cutting.to_str())

    def _cut(self, row: Encoding) -> Encoded:
        if len(row) <= self._max_length:
            return row
        ids, type_ids, owners = row.ids, row.type_ids, row.sequence_ids
        is_cut, from_left = bool(row.overflowing), self._side == "left"
        if len(row) > self._longest:
            kept, is_cut = kept_tokens(owners, self._longest, from_left=from_left), True
            ids, type_ids = [ids[index] for index in kept], [type_ids[index] for index in kept]
            owners = [owners[index] for index in kept]
        if self._long is None:
            return Tokens(ids, type_ids, overflowing=True)
        length, long = self._max_length, self._long
        return windows_of(ids, type_ids, owners, max_length=length, long=long, overflowing=is_cut, from_left=from_left)


def kept_tokens(owners: Sequence[int | None], max_length: int, *, from_left: bool = False) -> list[int]:
    """Ascending indices of the tokens that stay after a cut to `max_length`. All special tokens stay.

    Args:
        owners: as in `windows_of`.
    """
    # Lists of 200,000 tokens would block other threads.
    numbers = np.array([-1 if owner is None else owner for owner in owners])
    texts = [np.flatnonzero(numbers == text) for text in (0, 1)]
    special = np.flatnonzero(numbers == -1)
    room = max(max_length - len(special), 0)
    shorter, longer = sorted(map(len, texts))
    # As in the library: cut the longer text to the shorter's length, then both alike.
    longer = min(longer, max(shorter, room - shorter))
    if shorter + longer > room:
        shorter, longer = room // 2, room - room // 2
    counts = (shorter, longer) if len(texts[0]) <= len(texts[1]) else (longer, shorter)
    first, second = (
        text[len(text) - count :] if from_left else text[:count] for text, count in zip(texts, counts, strict=True)
    )
    return np.sort(np.concatenate([special, first, second])).tolist()


def row_of(length: int, tokens: Callable[[Text], int], *, is_pair: bool) -> Text:
    """A row of about `length` tokens, to measure latency. A pair's first text is short."""

    def words(count: int) -> Text:
        if not is_pair:
            return " ".join(["a"] * max(1, count))
        first = max(1, min(count // 2, _SHORT_TEXT))
        return " ".join(["a"] * first), " ".join(["a"] * max(1, count - first))

    one, two = tokens(words(2)), tokens(words(4))
    return words(2 + round((length - one) * 2 / max(1, two - one)))


def pad(encodings: Sequence[Encoded], info: TokenizerInfo) -> dict[str, np.ndarray]:
    """Pad at least one row to the longest one: int64 (rows, longest) by input name."""
    parts, _ = spread(encodings)
    longest = max(map(len, parts))
    fillers = {"input_ids": info.pad_id, "attention_mask": 0, "token_type_ids": info.pad_type_id}
    feeds = {name: np.full((len(parts), longest), fillers[name], dtype=np.int64) for name in info.input_names}
    for row, encoding in enumerate(parts):
        length = len(encoding)
        filled = slice(longest - length, longest) if info.pad_side == "left" else slice(0, length)
        feeds["input_ids"][row, filled] = encoding.ids
        feeds["attention_mask"][row, filled] = 1
        if info.token_type_ids:
            feeds["token_type_ids"][row, filled] = encoding.type_ids
    return feeds
