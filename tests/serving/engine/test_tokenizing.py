"""Rows to token ids: equal to the library's own truncation, without its cost on long pairs."""

import json
import random
from pathlib import Path
from typing import Any, Literal

import pytest
from tiers import others_slow
from tokenizers import Encoding, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from kdc.artifact.manifest import TokenizerInfo
from kdc.common.errors import InputError, KdcError
from kdc.serving.engine.tokenizing import RowTokenizer, Text, kept_tokens, row_of

Side = Literal["left", "right"]
WORDS = [f"wordling{number:03d}" for number in range(300)]
SPECIAL = ["[UNK]", "[CLS]", "[SEP]"]
TEMPLATE = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
)


@pytest.fixture(scope="module", params=["wordpiece", "bpe", "roberta", "unigram", "whole-unigram"])
def tokenizer_json(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that cuts words into pieces; after a space, byte-level BPE has other pieces than at the beginning."""
    if request.param == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.train_from_iterator(
            [" ".join(WORDS)], trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL)
        )
    elif "unigram" in request.param:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=request.param == "unigram")
        tokenizer.train_from_iterator(
            [" ".join(WORDS)], trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="[UNK]")
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=request.param == "bpe")
        tokenizer.train_from_iterator([" ".join(WORDS)], trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL))
    tokenizer.post_processor = (
        processors.RobertaProcessing(("[SEP]", 2), ("[CLS]", 1)) if request.param == "roberta" else TEMPLATE
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def info(length: int, side: Side) -> TokenizerInfo:
    return TokenizerInfo(max_length=length, pad_id=0, pad_token="[UNK]", token_type_ids=True, truncation_side=side)


def rows_of_all_lengths(seed: int) -> list[Text]:
    """Texts of 1 to 40 words, and all pairs of them."""
    generator = random.Random(seed)
    texts = [" ".join(generator.choices(WORDS, k=count)) for count in (1, 2, 3, 8, 40)]
    return [*texts, *[(one, two) for one in texts for two in texts]]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", [5, 32])
def test_a_cut_row_is_what_the_library_makes_of_the_whole_row(tokenizer_json: Path, length: int, side: Side) -> None:
    oracle = Tokenizer.from_file(str(tokenizer_json))
    oracle.enable_truncation(length, strategy="longest_first", direction=side)
    rows = rows_of_all_lengths(seed=length)
    tokenizer = RowTokenizer.read(tokenizer_json, info(length, side))
    measured, _ = tokenizer.encode_and_measure(rows)
    for row, encoding, other in zip(rows, tokenizer.encode(rows), measured, strict=True):
        expected = oracle.encode(*([row] if isinstance(row, str) else row))
        assert (encoding.ids, encoding.type_ids) == (expected.ids, expected.type_ids)
        assert (other.ids, other.type_ids) == (expected.ids, expected.type_ids)
        assert bool(encoding.overflowing) == bool(expected.overflowing)


TROUBLE = [
    "\n",
    "\n\n\n",
    "     ",
    "\t",
    "  ",
    "\u3000",
    "中文",
    "é",
    "e\u0301",
    "!!!",
    "wordling",
    "x" * 300,
    "[SEP]",
    "\ufb01",
    "İ",
    "👍🏽",
]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("seed", others_slow(range(6)))
def test_a_long_text_of_which_a_part_is_read_has_the_whole_texts_tokens(
    tokenizer_json: Path, side: Side, seed: int
) -> None:
    # The bugs to catch: a token at the end of the part that the whole text does not have, too few tokens because
    # those of the part were few, and a pair whose shorter text is taken for as long as its part.
    oracle = Tokenizer.from_file(str(tokenizer_json))
    oracle.no_truncation()
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=count)) for count in (8, 34, 60)]
    # Words that are too long for any token, and whose beginning would be many; signs that are a token each.
    texts += ["", "x" * 900, " ".join(["w" + "o" * 149] * 9), "!" * 300, " ".join(WORDS * 2)]
    # No space to cut at: between a letter and its accent, and in a word that is too long, as its beginning is not.
    texts += [
        "中文" * 450,
        "\uff01" * 900,
        "wordling!e\u0301?" * 60,
        "x" * 300 + "-w" + "o" * 149 + "-" + "\uff01" * 500,
    ]
    texts += ["".join(draw.choices([*TROUBLE, *(f"{word} " for word in WORDS[:14])], k=400)) for _ in range(3)]
    rows: list[Text] = [*texts, *((one, two) for one in texts for two in texts)]
    tokenizer = RowTokenizer.read(tokenizer_json, info(16, side))
    for row, encoding in zip(rows, tokenizer.encode(rows), strict=True):
        whole = oracle.encode(*([row] if isinstance(row, str) else row))
        kept = kept_tokens(whole.sequence_ids, 16, from_left=side == "left")
        expected = [whole.ids[place] for place in kept]
        if isinstance(row, tuple) and min(map(len, row)) > tokenizer._most_read:  # the odd token may be of either text
            assert encoding.ids in (expected, *(_cut_pair(whole, side, kept) for kept in ((6, 7), (7, 6))))
            continue
        assert encoding.ids == expected
        assert bool(encoding.overflowing) == (len(whole) > 16)


class Counting:
    """The library's tokenizer; notes how many characters it reads, and how many pieces of a row it cuts off."""

    def __init__(self, library: Tokenizer) -> None:
        self._library = library
        self.read, self.pieces = list[int](), list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def encode_batch_fast(self, rows: list[Text]) -> list[Encoding]:
        self.read.append(sum(len(text) for row in rows for text in ([row] if isinstance(row, str) else row)))
        encodings = self._library.encode_batch_fast(rows)
        self.pieces += [len(encoding.overflowing) for encoding in encodings]
        return encodings


def _cut_pair(whole: Encoding, side: Side, kept: tuple[int, int]) -> list[int]:
    texts = [[token for token, owner in zip(whole.ids, whole.sequence_ids, strict=True) if owner == n] for n in (0, 1)]
    one, two = (ids[-count:] if side == "left" else ids[:count] for ids, count in zip(texts, kept, strict=True))
    return [1, *one, 2, *two, 2]


def test_characters_that_become_many_tokens_do_not_have_the_library_keep_all_pieces(
    tokenizer_json: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a pair it keeps each combination: 3 kB of U+FDFA took 1.7 GB and 7 s."""
    tokenizer = RowTokenizer.read(tokenizer_json, info(16, "right"))
    counting = Counting(tokenizer._cutting)
    monkeypatch.setattr(tokenizer, "_cutting", counting)
    for text in ("\ufdfa" * 60, "\U0001f600" * 60, "\ufdfa " * 30, "a " * 30):
        tokenizer.encode([(text, text)])
    assert max(counting.pieces, default=0) < 100


def test_of_a_text_without_spaces_little_is_tokenised(
    tokenizer_json: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """One text of 600 kB took 7.6 s and 638 MB. WordPiece has one token for it."""
    tokenizer = RowTokenizer.read(tokenizer_json, info(16, "right"))
    counting = Counting(tokenizer._whole)
    monkeypatch.setitem(tokenizer.__dict__, "_whole", counting)
    endless = "\ufdfa" * 20_000
    rows: list[Text] = [endless, (endless, "short"), (endless, endless)]
    assert all(bool(row.overflowing) for row in tokenizer.encode(rows)) or "wordpiece" in request.node.name
    assert sum(counting.read) < 20_000
    assert sum(tokenizer.chars_read(rows)) < 20_000


@pytest.mark.parametrize("tokenizer_json", ["wordpiece"], indirect=True)
def test_of_a_pair_without_spaces_little_is_tokenised_if_words_have_few_tokens(
    tokenizer_json: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = RowTokenizer.read(tokenizer_json, info(16, "right"))
    counting = Counting(tokenizer._whole)
    monkeypatch.setitem(tokenizer.__dict__, "_whole", counting)
    endless = "中文" * 10_000  # each ideograph is a word, so that no part of the text can be left out beforehand
    (row,) = tokenizer.encode([(endless, endless)])
    assert (len(row), bool(row.overflowing)) == (16, True)
    assert sum(counting.read) < 10_000


@pytest.mark.parametrize("side", ["right", "left"])
def test_of_a_long_text_only_what_is_kept_is_tokenised(
    tokenizer_json: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, side: Side
) -> None:
    # 2 MB of texts in a request kept single requests from being answered for seconds.
    tokenizer = RowTokenizer.read(tokenizer_json, info(16, side))
    counting = Counting(tokenizer._whole)
    read = counting.read
    read_whole = "whole-unigram" in request.node.name  # no words are told apart
    monkeypatch.setitem(tokenizer.__dict__, "_whole", counting)
    long = " ".join(WORDS * 60)  # 200,000 characters
    tokenizer.encode([long, (long, "short"), ("w " * 100, long)])
    assert (sum(read) < 10_000) == (read_whole is False)
    read.clear()
    tokenizer.encode([(long, long)])  # which of both has more tokens is known only of the whole
    assert len(read) == 1


def test_lengths_are_measured_before_the_cut(tokenizer_json: Path) -> None:
    oracle = Tokenizer.from_file(str(tokenizer_json))
    rows = rows_of_all_lengths(seed=1)
    _, lengths = RowTokenizer.read(tokenizer_json, info(16, "right")).encode_and_measure(rows)
    assert lengths == [len(oracle.encode(*([row] if isinstance(row, str) else row))) for row in rows]


def test_a_pair_of_very_long_texts_takes_linear_memory(tokenizer_json: Path) -> None:
    long = " ".join(WORDS * 60)  # left to the library, the cut-off pieces would fill gigabytes
    (encoding,) = RowTokenizer.read(tokenizer_json, info(16, "right")).encode([(long, long)])
    assert len(encoding) == 16


def test_a_copy_cuts_the_other_side(tokenizer_json: Path) -> None:
    text = " ".join(WORDS)
    right = RowTokenizer.read(tokenizer_json, info(16, "right"))
    left = RowTokenizer.read(tokenizer_json, info(16, "left"))
    assert right.cutting("left").encode([text])[0].ids == left.encode([text])[0].ids != right.encode([text])[0].ids


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_cut_is_seen_where_no_special_tokens_are_added(side: Side) -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "w": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    rows = RowTokenizer(tokenizer, 8, side).encode(["w " * 50, "w " * 8, "w"])
    assert [(len(row), bool(row.overflowing)) for row in rows] == [(8, True), (8, False), (1, False)]
    with pytest.raises(InputError, match="no tokens"):
        RowTokenizer(tokenizer, 8, side).encode(["w", ""])


def test_long_and_short_pairs_have_their_types_from_one_way_of_encoding(tmp_path: Path) -> None:
    """Would catch a long row that goes another way than a short one: without a post-processor their types differed."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    rows = RowTokenizer.read(tmp_path / "tokenizer.json", info(4, "right"))
    short, long = rows.encode([("a a", "a a"), ("a " * 5000, "a " * 5000)])
    assert list(short.type_ids) == list(long.type_ids)


def test_a_side_that_was_cut_before_is_at_hand(tokenizer_json: Path) -> None:
    rows = RowTokenizer.read(tokenizer_json, info(8, "right"))
    assert rows.has_cut(None)
    assert rows.has_cut("right")
    assert not rows.has_cut("left")
    rows.cutting("left")
    assert rows.has_cut("left")


def test_a_panic_of_the_library_is_an_error_of_kdc(tmp_path: Path) -> None:
    """Would catch it as what it is, no `Exception`: it ended the thread that loads artifacts, for good."""
    path, info = tmp_path / "tokenizer.json", TokenizerInfo(max_length=8, pad_id=0, pad_token="", token_type_ids=False)
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(path))
    plain = json.loads(path.read_bytes())
    path.write_text(json.dumps(plain | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}))
    with pytest.raises(KdcError, match=r"tokenizer.json cannot be read"):
        RowTokenizer.read(path, info)
    endless = {"type": "Replace", "pattern": {"Regex": "(a+)+$b"}, "content": ""}
    path.write_text(json.dumps(plain | {"normalizer": endless}))
    tokenizer = RowTokenizer.read(path, info)
    with pytest.raises(KdcError, match="failed on these texts") as caught:
        tokenizer.encode(["a" * 40])
    assert "aaa" not in str(caught.value)


@pytest.mark.parametrize("is_pair", [False, True])
@pytest.mark.parametrize(("special", "a_word"), [(2, 1), (3, 2), (0, 3)])
def test_a_made_up_row_has_as_many_tokens_as_whole_words_come_near_to(special: int, a_word: int, is_pair: bool) -> None:
    """The oracle tries every number of words. A pair's first text stays short, as in real pairs that are long."""

    def tokens(row: Text) -> int:
        return special + a_word * sum(len(text.split()) for text in ([row] if isinstance(row, str) else row))

    fewest = 2 if is_pair else 1  # words of a row
    for length in range(special + fewest * a_word, 90):
        row = row_of(length, tokens, is_pair=is_pair)
        assert abs(tokens(row) - length) == min(abs(special + a_word * words - length) for words in range(fewest, 90))
        assert isinstance(row, tuple) is is_pair
        if isinstance(row, tuple):
            first, second = (len(text.split()) for text in row)
            assert first == min(10, (first + second) // 2)
