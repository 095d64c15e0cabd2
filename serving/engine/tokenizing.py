"""Texts to token ids and padded batches. Training and serving both cut texts here, so that both see the same tokens.

Needs the `tokenizers` library alone.
"""

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

# A text that fills at most this many pieces of the maximum length is left to the library's own truncation.
_FEW_PIECES = 4
_MOST_TOKENS = 33  # of a character: NFKC makes 18 letters of U+FDFA, which have 33 bytes
_SHORT_TEXT = 10  # words of a pair's first text, where a pair is made up
# Characters of a longer text that are tokenised first, for each token that is kept; then four times as many, ...
_CHARACTERS = 8
_MOST_READ = 4  # times as many of a text that cannot be cut between words, unless they have too few tokens
# Most tokens seen at the end of a part that the whole text does not have.
_MARGIN = 32


def is_utf8(text: str) -> bool:
    """Whether the text has a UTF-8 form. A lone surrogate has none; the tokenizer would fail without naming the row."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_blank(text: str) -> bool:
    """Whether a text is empty or white space. No such row is trained on: no answer would mean anything."""
    return not text or text.isspace()


def as_row(texts: Sequence[str]) -> Text:
    """One text, or two as a pair."""
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])


def checked_rows(texts: Sequence[Text], task: TaskInfo, first: int = 0) -> list[Text]:
    """Check that rows are what the task takes; returns texts, or tuples of two texts. Messages count from `first`.

    Raises:
        InputError: a row is not one text (single-text task) or two texts (pair task), or a text is not valid Unicode,
            or blank.
    """
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
    """Turn what the library raises within the block into an error of kdc. A panic of its Rust code is no `Exception`.
    Its words are told of a file alone, since of a row they may hold its text."""
    try:
        yield
    except (KdcError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        given = type(error).__name__ if path is None else f"{path}: {error}"
        raise KdcError(what, given=given, remedy="make tokenizer.json again with `kdc compress`") from error


class RowTokenizer:
    """Tokenises rows and cuts them to a maximum length, or divides longer ones into windows of that length; `pad` pads
    them later. Several threads may share one object.

    Both texts of a pair count towards the maximum length, special tokens included, and the longer text is cut first.
    The result equals the library's own truncation (strategy "longest_first"). The library tokenises all of a text and
    keeps every piece that it cuts off, and for a pair every combination of pieces: gigabytes for two texts of 10,000
    words. Here no more is tokenised than is kept, if the tokenizer tells words apart.

    Args:
        tokenizer: this object changes its settings, so nobody else may use it.
        max_length: tokens of a row after the cut, or of a window, special tokens included.
        truncation_side: "right" cuts the end of a text, "left" its beginning.
        long: the windows of a longer row; None cuts it.
    """

    def __init__(
        self, tokenizer: Tokenizer, max_length: int, truncation_side: str = "right", long: LongTexts | None = None
    ) -> None:
        self._cutting = tokenizer
        self._max_length, self._long = max_length, long
        self._longest = longest_row(max_length, long)  # tokens of a row after the cut
        # A tokenizer.json brings its own settings: the one of all-MiniLM pads every row to 128 tokens.
        tokenizer.no_padding()
        tokenizer.no_truncation()  # while it is looked at
        self._words = WordPieces.of(tokenizer, max_length)
        tokenizer.enable_truncation(self._longest, strategy="longest_first", direction=truncation_side)
        self._side = truncation_side
        # A text of ASCII has no more tokens than characters, so with so few characters it has few pieces.
        self._first_part = _CHARACTERS * (self._longest + _MARGIN)  # characters
        self._most_read = _MOST_READ * self._first_part
        self._few_characters = _FEW_PIECES * (self._longest + 1)

    @classmethod
    def read(cls, path: Path, info: TokenizerInfo, read: Callable[[Path], bytes] = Path.read_bytes) -> Self:
        """Parse the `tokenizer.json` that `read` reads.

        Raises:
            KdcError: it cannot be parsed; or whatever `read` raises.
        """
        content = read(path)
        with _library_errors("tokenizer.json cannot be read", path):
            return cls(Tokenizer.from_buffer(content), info.max_length, info.truncation_side, info.long)

    def cutting(self, side: str | None) -> "RowTokenizer":
        """The same tokenizer, but cutting `side`: "left", "right", or None for its own. The first call for the other
        side takes 60 ms, or 500 ms with a large vocabulary."""
        return self if side in (None, self._side) else self._other_side

    def has_cut(self, side: str | None) -> bool:
        """Whether `cutting(side)` returns at once, since the tokenizer is its own or was made before."""
        return side in (None, self._side) or "_other_side" in self.__dict__

    def encode(self, rows: Sequence[Text], first: int = 0, *, beside: bool = False) -> list[Encoded]:
        """Tokenise rows, special tokens included, and cut them. A row's `overflowing` is empty unless it was cut.

        Args:
            rows: texts or pairs.
            first: messages count the rows from this number.
            beside: whether other threads are to run meanwhile: the library lets them, and the faster table of words for
                plain rows does not.

        Raises:
            InputError: a row has no token: it is empty, and the tokenizer adds no special tokens.
            KdcError: the library failed, as with a tokenizer.json that names a token it lacks.
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
        """Tokenise only as much of a row's texts as is kept after the cut, and a margin. If both texts of a pair are
        long, they are read whole, or squeezed if the tokenizer allows that: the one with more tokens is cut first."""
        texts = (row,) if isinstance(row, str) else row
        for parts, strays in self._attempts(texts, once=squeezing is not None):
            (encoding,) = self._whole.encode_batch_fast([as_row(parts)])
            if self._is_enough(encoding, parts, texts, strays):
                return self._cut(encoding)
        if squeezing is not None:
            return self._encode_long(as_row([squeezing.squeezed(text) for text in texts]))
        return self._cut(*self._whole.encode_batch_fast([row]))

    def _attempts(self, texts: Sequence[str], *, once: bool) -> Iterator[tuple[Sequence[str], Sequence[int]]]:
        """Parts of texts that may have all tokens that are kept, and the strays of each part, as `_part` gives them.

        Parts grow for as long as one text alone is cut between words. The last have as many characters as are ever
        read. `once` ends after the first.
        """
        most = self._first_part
        while self._splits_words:
            parts, strays = zip(*(self._part(text, most) for text in texts), strict=True)
            uncut = [text for part, text in zip(parts, texts, strict=True) if part is text]
            if len(uncut) != len(texts) - 1 or any(len(text) > most for text in uncut):
                break  # nothing is saved
            yield parts, strays
            if once:
                return
            most *= 4
        # One character may become 33 tokens, and a word without an end takes seconds and gigabytes.
        parts = tuple(text[-self._most_read :] if self._side == "left" else text[: self._most_read] for text in texts)
        if not once and parts != texts:
            yield parts, [_MARGIN + (self._word_tokens or 0)] * len(parts)

    def _is_enough(self, encoding: Encoding, parts: Sequence[str], texts: Sequence[str], strays: Sequence[int]) -> bool:
        """Whether parts of texts have all tokens that are kept of the texts. A whole text beside a part is the shorter
        one."""
        owners = encoding.sequence_ids
        whole = [len(part) == len(text) for part, text in zip(parts, texts, strict=True)]
        least = max([self._longest, *(owners.count(text) for text, is_whole in enumerate(whole) if is_whole)])
        return all(is_whole or owners.count(text) - strays[text] >= least for text, is_whole in enumerate(whole))

    def chars_read(self, rows: Sequence[Text]) -> list[int]:
        """How many characters of each row are tokenised, if the first part of a long text is enough."""

        def of_row(row: Text) -> int:
            shorter, longer = ("", row) if isinstance(row, str) else sorted(row, key=len)
            is_part_enough = self._splits_words and len(shorter) <= self._first_part
            most = self._first_part if is_part_enough else self._most_read
            return min(len(shorter), self._most_read) + min(len(longer), most)

        return list(map(of_row, rows))

    def _part(self, text: str, most: int) -> tuple[str, int]:
        """The part of a text to read, of at most so many characters, and the number of strays: tokens at the cut that
        the whole text may not have. The cut is at a single space between two words. Without one it is anywhere if
        words have few tokens, and otherwise nowhere."""
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
        """Most tokens of a word; None if there may be any number. WordPiece takes a longer word for an unknown one."""
        model = self._cutting.model
        is_bert = isinstance(self._cutting.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        return model.max_input_chars_per_word if is_bert and isinstance(model, models.WordPiece) else None

    @functools.cached_property
    def _splits_words(self) -> bool:
        """Whether a word's tokens depend on nothing beyond it, so that a part's are those of the whole text."""
        before = self._cutting.pre_tokenizer
        return before is not None and len(before.pre_tokenize_str("word word")) > 1

    def encode_and_measure(self, rows: Sequence[Text]) -> tuple[list[Encoded], list[int]]:
        """The same tokens as `encode` gives, and each row's number of tokens before the cut."""
        whole = self._whole.encode_batch_fast(rows)
        return [self._cut(encoding) for encoding in whole], [len(encoding) for encoding in whole]

    def _is_long(self, row: Text) -> bool:
        if isinstance(row, str):
            return len(row) > self._few_characters
        return any(len(text) * (1 if text.isascii() else _MOST_TOKENS) > self._few_characters for text in row)

    @functools.cached_property
    def _other_side(self) -> "RowTokenizer":
        """Made from memory, since the file may have been replaced."""
        return RowTokenizer(self._copy(), self._max_length, "right" if self._side == "left" else "left", self._long)

    @functools.cached_property
    def _whole(self) -> Tokenizer:
        """The same tokenizer without truncation. It takes 15 MB and 50 ms, and only long texts need it."""
        whole = self._copy()
        whole.no_truncation()
        return whole

    def _copy(self) -> Tokenizer:
        return Tokenizer.from_str(self._cutting.to_str())

    def _cut(self, row: Encoding) -> Encoded:
        """A row without the tokens that are too many, in windows if it needs several."""
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
    """Which tokens stay when a row is cut to `max_length`, the longer text first.

    Args:
        owners: (tokens,) 0 or 1 for tokens of the first or second text, None for special tokens, which all stay.
        max_length: tokens to keep in all.
        from_left: whether the beginnings of the texts are cut instead of their ends.

    Returns:
        indices of the tokens that stay, ascending.
    """
    # A number for each owner: there may be 200,000 tokens, and no other thread runs while lists of them are made.
    numbers = np.array([-1 if owner is None else owner for owner in owners])
    texts = [np.flatnonzero(numbers == text) for text in (0, 1)]
    special = np.flatnonzero(numbers == -1)
    room = max(max_length - len(special), 0)
    shorter, longer = sorted(map(len, texts))
    # As in the tokenizers library: the longer text gives way down to the length of the shorter one, then both alike.
    longer = min(longer, max(shorter, room - shorter))
    if shorter + longer > room:
        shorter, longer = room // 2, room - room // 2
    counts = (shorter, longer) if len(texts[0]) <= len(texts[1]) else (longer, shorter)
    first, second = (
        text[len(text) - count :] if from_left else text[:count] for text, count in zip(texts, counts, strict=True)
    )
    return np.sort(np.concatenate([special, first, second])).tolist()


def row_of(length: int, tokens: Callable[[Text], int], *, is_pair: bool) -> Text:
    """Make a row of `length` tokens, or as near to it as whole words come, to measure latency with. `tokens` counts a
    row's tokens. Both numbers include special tokens. A pair's first text is short, as in real pairs that are long: it
    then has as many windows as they have."""

    def words(count: int) -> Text:
        if not is_pair:
            return " ".join(["a"] * max(1, count))
        first = max(1, min(count // 2, _SHORT_TEXT))
        return " ".join(["a"] * first), " ".join(["a"] * max(1, count - first))

    one, two = tokens(words(2)), tokens(words(4))
    return words(2 + max(0, round((length - one) * 2 / max(1, two - one))))


def pad(encodings: Sequence[Encoded], info: TokenizerInfo) -> dict[str, np.ndarray]:
    """Pad encodings to the longest one.

    Args:
        encodings: at least one, of any lengths. Each window of a row is padded like a row.
        info: which inputs the graph takes, and what fills them.

    Returns:
        the graph's inputs by name: int64 (rows, longest). The attention mask is 0 where a row is padded.
    """
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
