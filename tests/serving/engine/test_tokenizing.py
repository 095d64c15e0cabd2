"""Rows to token ids: equal to the library's own cut, without its cost on long pairs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Literal

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from kdc.artifact.manifest import TokenizerInfo
from kdc.common.errors import InputError
from kdc.serving.engine.tokenizing import RowTokenizer

WORDS = [f"wordling{number:03d}" for number in range(300)]


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def tokenizer_json(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that cuts words into pieces."""
    if request.param == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "[CLS]", "[SEP]"])
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["[UNK]", "[CLS]", "[SEP]"])
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def info(length: int, side: Literal["left", "right"]) -> TokenizerInfo:
    return TokenizerInfo(
        max_length=length,
        pad_id=0,
        pad_token="[UNK]",
        token_type_ids=True,
        truncation_side=side,
    )


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", [5, 16, 33])
def test_a_cut_row_is_what_the_library_makes_of_the_whole_row(
    tokenizer_json: Path, length: int, side: Literal["left", "right"]
) -> None:
    oracle = Tokenizer.from_file(str(tokenizer_json))
    oracle.enable_truncation(length, strategy="longest_first", direction=side)
    generator = random.Random(length)
    texts = [" ".join(generator.choices(WORDS, k=count)) for count in (1, 2, 3, 5, 8, 20, 60)]
    rows: list[str | tuple[str, str]] = [*texts, *[(one, two) for one in texts for two in texts]]
    found = RowTokenizer.read(tokenizer_json, info(length, side)).encode(rows)
    for row, encoding in zip(rows, found, strict=True):
        expected = oracle.encode(*([row] if isinstance(row, str) else row))
        assert (encoding.ids, encoding.type_ids) == (expected.ids, expected.type_ids)


def test_long_pairs_leave_no_heap_of_cut_off_pieces(tokenizer_json: Path) -> None:
    long = " ".join(WORDS * 10)
    (encoding,) = RowTokenizer.read(tokenizer_json, info(16, "right")).encode([(long, long)])
    assert len(encoding.ids) == 16
    assert len(encoding.overflowing) < 60


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_cut_is_seen_where_no_special_tokens_are_added(side: Literal["left", "right"]) -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "w": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    rows = RowTokenizer(tokenizer, info(8, side)).encode(["w " * 50, "w " * 8, "w"])
    assert [(len(row), bool(row.overflowing)) for row in rows] == [(8, True), (8, False), (1, False)]
    with pytest.raises(InputError, match="no tokens"):
        RowTokenizer(tokenizer, info(8, side)).encode(["w", ""])
