"""Words that are looked up: the same tokens as the library's, and the library is asked for nothing else."""

import random
import re
import sys
from collections.abc import Callable

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from kdc.artifact.manifest import LongTexts
from kdc.serving.engine.long_texts import Windows
from kdc.serving.engine.tokenizing import RowTokenizer, Text
from kdc.serving.engine.word_pieces import _LETTER, WordPieces

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "film", "the", "THE", "x2", "don", "t", "un", "a", "e", "2", "i"]
PIECES += ["##s", "##watch", "##able", "##2", *"!,.'-#$@/", "é", "y" * 101]
TEMPLATE = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
)
# Words that are one token, several, or none; signs; what may be a special token; and what is not plain.
WORDS = ["film", "The", "THE", "films", "unwatchable", "zebra", "x2", "22", "don't", "a-e", "...", "#s", "##s", "[SEP]"]
WORDS += ["[", "é", "É", "cafe\u0301", "\u3000", "中文", "a\x00e", "a\x1ce", "\x7f", "\t", "\n", "\r\n", "\x0b", "\x85"]
WORDS += ["a" * 32, "a" * 33, "z" * 101, "y" * 101, "<mark>", "~", "`^"]


def bert(
    *, lowercase: bool = True, normalize: bool = True, processor: processors.PostProcessor | None = TEMPLATE
) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({piece: place for place, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    if normalize:
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if processor is not None:
        tokenizer.post_processor = processor
    tokenizer.add_special_tokens(PIECES[:4])
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "lower case": bert,
    "any case": lambda: bert(lowercase=False),
    "nothing normalised": lambda: bert(normalize=False),
    "no special tokens": lambda: bert(processor=None),
    "BERT's own frame": lambda: bert(processor=processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))),
}


def rows_of(seed: int) -> list[Text]:
    draw = random.Random(seed)
    texts = ["".join(draw.choices([*WORDS, " ", " ", "  "], k=draw.randint(1, 12))) for _ in range(60)]
    texts += [" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(60)]
    texts += [" ".join(draw.choices(WORDS[:13], k=draw.randint(1, 12))) for _ in range(90)]
    return [*texts, *zip(texts, draw.sample(texts, len(texts)), strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_library(kind: str) -> None:
    """Would catch a word that the library reads otherwise: a sign within it, a control character that it drops, an
    accent, a special token in the text, a word too long for any token; and special tokens in the wrong places."""
    oracle, words = KINDS[kind](), WordPieces.of(KINDS[kind](), longest=24)
    assert words is not None
    looked_up = 0
    for row in rows_of(seed=len(kind)):
        (expected,) = oracle.encode_batch_fast([row])
        if (found := words.encode(row)) is not None:
            looked_up += 1
            assert (found.ids, found.type_ids, found.overflowing) == (expected.ids, expected.type_ids, False), row
        assert found is None or len(expected) <= 24
    assert looked_up > 60


@pytest.mark.parametrize("row", ["The films, unwatchable!", ("Don't\twatch", "zebra\n2 films"), "a" * 32])
def test_plain_rows_are_not_left_to_the_library(row: Text) -> None:
    words = WordPieces.of(bert(), longest=24)
    assert words is not None
    assert words.encode(row) is not None


@pytest.mark.parametrize(
    "row", ["é", "[SEP]", "a\x00", "z" * 33, "a " * 23, "unwatchable " * 8, ("a", "a " * 21), ("a", "a é")]
)
def test_other_rows_are_left_to_the_library(row: Text) -> None:
    """Would catch characters that are to be normalised, what may be a special token, and rows that are to be cut."""
    words = WordPieces.of(bert(), longest=24)
    assert words is not None
    assert words.encode(row) is None


def framed(single: str, pair: str = "[CLS] $A [SEP] $B [SEP]") -> processors.PostProcessor:
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])


def odd(change: Callable[[Tokenizer], object]) -> Tokenizer:
    tokenizer = bert()
    change(tokenizer)
    return tokenizer


OTHERS = {
    "another normaliser": odd(lambda each: setattr(each, "normalizer", normalizers.NFKC())),
    "another reader of words": odd(lambda each: setattr(each, "pre_tokenizer", pre_tokenizers.Whitespace())),
    "another frame": odd(lambda each: setattr(each, "post_processor", processors.ByteLevel())),
    "texts in another order": bert(processor=framed("[CLS] $A", pair="$B [SEP] $A")),
    "a text twice": bert(processor=framed("$A [SEP] $A")),
    "a text of a pair twice": bert(processor=framed("$A", pair="$A $B $A")),
    "no text": bert(processor=framed("[CLS]")),
    "a second text alone": bert(processor=framed("$B")),
    "an added sign that is dropped": odd(lambda each: each.add_tokens(["\x7fa"])),
    "an added word": odd(lambda each: each.add_tokens(["film"])),
    "an added letter that is normalised": odd(lambda each: each.add_tokens([AddedToken("É", normalized=True)])),
    "an added space": odd(lambda each: each.add_tokens([" ."])),
    "no token for unknown words": odd(lambda each: setattr(each, "model", models.WordPiece({"a": 0}, unk_token="u"))),
    "no word": odd(lambda each: setattr(each, "model", models.WordPiece({"[UNK]": 0, "A": 1}, unk_token="[UNK]"))),
    "another model": Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_tokenizers_are_left_to_the_library(kind: str) -> None:
    assert WordPieces.of(OTHERS[kind], longest=24) is None


def test_a_window_is_not_taken_for_a_row() -> None:
    """Would catch a row of several windows that is answered by one."""
    long = LongTexts(stride=4, windows=3)
    (row,) = RowTokenizer(bert(), 8, long=long).encode(["a " * 12])
    assert isinstance(row, Windows)
    assert [len(part) for part in row.parts] == [8, 8, 8]


def test_where_other_threads_are_to_run_the_library_reads_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a large request that the event loop, and so everybody, waits for."""
    tokenizer = RowTokenizer(bert(), 8)
    expected = [row.ids for row in tokenizer.encode(["a film", "the film"])]
    monkeypatch.setattr(WordPieces, "encode", None)
    assert [row.ids for row in tokenizer.encode(["a film", "the film"], beside=True)] == expected


def test_rows_of_both_ways_keep_their_order() -> None:
    """Would catch answers that go to another row."""
    rows: list[Text] = ["é a", "a", "a " * 400, "film é", "the film", "é"]
    oracle = bert()
    oracle.enable_truncation(8)
    found = RowTokenizer(bert(), 8).encode(rows)
    assert [row.ids for row in found] == [oracle.encode(row).ids for row in rows]
    assert [bool(row.overflowing) for row in found] == [False, False, True, False, False, False]


@pytest.mark.parametrize("accents", [True, False])
def test_a_letter_is_a_part_of_its_word_whatever_the_normaliser_does(accents: bool) -> None:
    """Would catch a character that the library drops or splits a word at, of all that are taken for letters."""
    letters = [chr(code) for code in range(sys.maxunicode) if re.match(_LETTER, chr(code))]
    assert len(letters) > 20_000
    normaliser = normalizers.BertNormalizer(strip_accents=accents)
    words = pre_tokenizers.BertPreTokenizer().pre_tokenize_str(
        normaliser.normalize_str(" ".join(f"a{letter}a" for letter in letters))
    )
    assert len(words) == len(letters)
    assert min(len(word) for word, _ in words) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("added", [[], ["[AAA]", "[sep", "#a b"]])
def test_a_squeezed_text_has_the_same_tokens(kind: str, added: list[str]) -> None:
    """Would catch a word that is known once its end is gone, two that become one, and added tokens that come or go."""
    oracle = KINDS[kind]()
    oracle.add_tokens(added)
    words = WordPieces.of(oracle, longest=24)
    assert words is not None
    draw = random.Random(len(kind))
    long = ["a" * 400, "y" * 108, "z" * 109, "é" * 300, "e\u0301" * 120, "\u0130" * 120, "中" * 120, "\U0001f600" * 150]
    spaces = ["   ", "\t\n", "\u3000 ", "\x0b\x0b", "\x85 ", "\x1c\x1c", "  \u0301", "\u2028\u2029"]
    pieces = ["film" + "s" * 97, "film" + "s" * 300, "[sep" + "2" * 300]  # words of which each part has pieces
    units = [*WORDS, *long, *pieces, *pieces, *spaces, "[AAA", "#a  b", " b", "[CLS]", "\u200b", "_"]
    for _ in range(200):
        text = "".join(draw.choices(units, k=draw.randint(1, 9)))
        assert oracle.encode(words.squeezed(text)).ids == oracle.encode(text).ids, repr(text)


@pytest.mark.parametrize("end", ["x", " ", "\t", "é", "\u3000"])
def test_of_a_text_with_few_tokens_little_is_left(end: str) -> None:
    """Would catch a text of one word, or of a word and spaces, that the library reads whole."""
    words = WordPieces.of(bert(), longest=24)
    assert words is not None
    assert len(words.squeezed("film" + end * 10_000)) < 200
