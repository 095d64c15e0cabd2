"""Tokenises plain rows by looking words up in a WordPiece vocabulary (BERT, MiniLM, E5).

The `tokenizers` library (0.23) takes longer than a student without layers. Version 1.0 may replace this file
(huggingface/tokenizers#2229).
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from tokenizers import Encoding, Tokenizer, models, normalizers, pre_tokenizers, processors

from kdc.serving.engine.long_texts import Tokens

_WORD = re.compile(r"[A-Za-z0-9]+|[^A-Za-z0-9\s]")  # a sign is a word
_NOT_PLAIN = re.compile(r"[^ -~\t\n\r]")
_LONGEST_UNKNOWN = 32  # characters; time grows with their square
_TEXTS = ("A", "B")
# Letters and digits, but no ideographs, which normalisers split from their word.
_LETTER = r"[^\W_\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
_SPACE = r"[ \t\n\r\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"  # the normaliser drops other spaces
_SPACES = re.compile(f"({_SPACE}){_SPACE}+")


@dataclass(frozen=True, slots=True)
class _Frame:
    ids: tuple[list[int], ...]  # (texts + 1,) special tokens before, between and after
    type_ids: tuple[list[int], ...]  # (texts + 1,)
    of_text: tuple[int, ...]  # (texts,) token type of each text


class WordPieces:
    """Encodes rows like the library, if a word table is enough. Unlike the library, it blocks other threads.

    Args:
        frames: for single texts, and for pairs.
        longest: most tokens of an uncut row, special tokens included.
        added: added tokens; texts with one's first character are left to the library.
    """

    def __init__(
        self,
        table: Mapping[str, int],
        model: models.WordPiece,
        frames: Sequence[_Frame],
        *,
        longest: int,
        added: Collection[str],
        lowercase: bool,
    ) -> None:
        self._table, self._model, self._frames, self._longest = table, model, frames, longest
        self._signs, self._lowercase = frozenset(token[:1] for token in added), lowercase
        # An added token may end inside a word, whose rest must be too long to be known.
        kept = model.max_input_chars_per_word + max(map(len, added), default=0) + 1
        self._long_word = re.compile(f"(?<!{_LETTER})({_LETTER}{{{kept}}}){_LETTER}+")
        self._squeezes_spaces = not any(any(map(str.isspace, token)) for token in added)

    @classmethod
    def of(cls, tokenizer: Tokenizer, longest: int) -> Self | None:
        """The table of a tokenizer that neither cuts nor pads; None if it is not like BERT's."""
        normalizer, model = tokenizer.normalizer, tokenizer.model
        if not (
            isinstance(normalizer, normalizers.BertNormalizer | None)
            and isinstance(tokenizer.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
            and isinstance(model, models.WordPiece)
            and _takes_each_text_once(tokenizer.post_processor)
        ):
            return None
        added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        if not all("!" <= token[:1] <= "~" and not token[0].isalnum() for token in added):
            return None
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        longest_word = model.max_input_chars_per_word
        table = {word: token for word, token in vocabulary.items() if word.isascii() and len(word) <= longest_word}
        word = next((word for word in table if word.isalpha() and word == word.lower()), None)
        if word is None or model.unk_token not in vocabulary:
            return None
        frames = [_frame(row) for row in tokenizer.encode_batch_fast([word, (word, word)])]
        lowercase = normalizer is not None and normalizer.lowercase
        return cls(table, model, frames, longest=longest, added=added, lowercase=lowercase)

    def encode(self, row: str | tuple[str, str]) -> Tokens | None:
        """None if only the library can encode the row: non-ASCII, a possible added token, a long unknown word, too many
        tokens."""
        texts = (row,) if isinstance(row, str) else row
        frame = self._frames[len(texts) - 1]
        ids, type_ids = frame.ids[0][:], frame.type_ids[0][:]
        for number, text in enumerate(texts):
            text_ids = self._ids(text)
            if text_ids is None:
                return None
            ids += text_ids
            ids += frame.ids[number + 1]
            type_ids += [frame.of_text[number]] * len(text_ids)
            type_ids += frame.type_ids[number + 1]
        return Tokens(ids, type_ids) if len(ids) <= self._longest else None

    def squeezed(self, text: str) -> str:
        """The same tokens, without repeated spaces and the ends of words too long to be known."""
        text = self._long_word.sub(r"\1", text)
        return _SPACES.sub(r"\1", text) if self._squeezes_spaces else text

    def _ids(self, text: str) -> list[int] | None:
        if not text.isascii() or (not text.isprintable() and _NOT_PLAIN.search(text)):
            return None
        for sign in self._signs:
            if sign in text:
                return None
        words = _WORD.findall(text.lower() if self._lowercase else text)
        if len(words) > self._longest:
            return None
        ids = list(map(self._table.get, words))
        unknown = [index for index, token in enumerate(ids) if token is None] if None in ids else []
        if any(len(words[index]) > _LONGEST_UNKNOWN for index in unknown):
            return None
        for index in reversed(unknown):
            ids[index : index + 1] = [piece.id for piece in self._model.tokenize(words[index])]
        return ids  # type: ignore[return-value]  # none is None any more


def _takes_each_text_once(processor: processors.PostProcessor | None) -> bool:
    if processor is None or isinstance(processor, processors.BertProcessing):
        return True
    if not isinstance(processor, processors.TemplateProcessing):
        return False
    state = json.loads(processor.__getstate__())
    return all(
        [part["Sequence"]["id"] for part in state[name] if "Sequence" in part] == list(_TEXTS[:texts])
        for name, texts in (("single", 1), ("pair", 2))
    )


def _frame(row: Encoding) -> _Frame:
    """Each text of the row has one token."""
    ids, type_ids = row.ids, row.type_ids
    words = [index for index, text in enumerate(row.sequence_ids) if text is not None]
    starts, ends = [0, *(index + 1 for index in words)], [*words, len(ids)]
    return _Frame(
        tuple(ids[start:end] for start, end in zip(starts, ends, strict=True)),
        tuple(type_ids[start:end] for start, end in zip(starts, ends, strict=True)),
        tuple(type_ids[index] for index in words),
    )
