"""A smaller vocabulary: what is left cuts texts as before where it can, and loses no character."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from kdc.common.errors import InputError
from kdc.pipeline.models.loading import load_tokenizer
from kdc.pipeline.models.vocabulary import cut_vectors, kept_pieces, read_kept, save_smaller, without_others

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
KINDS = ("wordpiece", "unigram", "bpe")
LETTERS = "abcdefgh"


def words(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(LETTERS, weights=range(8, 0, -1), k=draw.randint(1, 9))) for _ in range(count)]


def texts(seed: int, count: int) -> list[str]:
    draw, known = random.Random(seed), words(0, 150)
    return [" ".join(draw.choices(known, k=draw.randint(1, 6))) for _ in range(count)]


def a_tokenizer(kind: str) -> Tokenizer:
    common: dict[str, Any] = {"vocab_size": 150, "special_tokens": SPECIAL, "show_progress": False}
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer: Any = trainers.WordPieceTrainer(**common)
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="[UNK]", **common)
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(**common)
    tokenizer.train_from_iterator(texts(1, 400), trainer)
    if kind == "wordpiece":  # as BERT's: pieces that nothing uses stand before the special tokens
        known = tokenizer.get_vocab()
        pieces = sorted(known, key=lambda piece: known[piece])
        pieces[1:1] = ["hhhhhhhhhh", "gggggggggg"]
        places = {piece: place for place, piece in enumerate(pieces)}
        tokenizer = Tokenizer(models.WordPiece(places, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.add_special_tokens(SPECIAL)
    cls, sep = ((piece, tokenizer.get_vocab()[piece]) for piece in ("[CLS]", "[SEP]"))
    if kind == "bpe":
        tokenizer.post_processor = processors.RobertaProcessing(sep, cls)
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[cls, sep]
        )
    return tokenizer


def a_model(kind: str, folder: Path) -> Any:
    """A tiny classifier with a tokenizer of a kind, saved."""
    torch.manual_seed(0)
    config = transformers.BertConfig(**tiny_models._SIZES, vocab_size=160, pad_token_id=0, initializer_range=0.6)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(folder)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=a_tokenizer(kind), model_max_length=64, **names).save_pretrained(folder)
    return model


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any, Any, np.ndarray, set[int]]:
    """A model, its tokenizer, the smaller one, the kept pieces, and those that some texts use."""
    model = a_model(request.param, tmp_path / "whole")
    whole = load_tokenizer(str(tmp_path / "whole"))
    used = {number for text in texts(2, 12) for number in whole(text)["input_ids"]}
    save_smaller(str(tmp_path / "whole"), used, 0, tmp_path / "smaller")
    cut_vectors(model, tmp_path / "smaller")
    return model, whole, load_tokenizer(str(tmp_path / "smaller")), read_kept(tmp_path / "smaller"), used


def test_texts_of_used_pieces_are_cut_as_before(made: tuple[Any, Any, Any, np.ndarray, set[int]]) -> None:
    """Would catch a shifted id, merges that are lost, and special tokens under their old ids."""
    _, whole, smaller, kept, used = made
    assert len(kept) < len(whole)
    count = 0
    for text in texts(3, 300):
        before = whole(text, "a b")["input_ids"]
        if set(before) <= used:
            count += 1
            assert kept[smaller(text, "a b")["input_ids"]].tolist() == before
    assert count > 10


def test_what_could_be_written_still_can(made: tuple[Any, Any, Any, np.ndarray, set[int]]) -> None:
    """Words that nobody has seen. Would catch a vocabulary of the used pieces alone."""
    _, whole, smaller, _, _ = made
    rows = [" ".join(words(seed, 3)) for seed in range(100, 200)]
    known = [text for text in rows if whole.unk_token_id not in whole(text)["input_ids"]]
    assert len(known) > 50
    changed = [text for text in known if len(smaller(text)["input_ids"]) != len(whole(text)["input_ids"])]
    assert changed  # else the words say nothing
    assert all(smaller.unk_token_id not in smaller(text)["input_ids"] for text in known)


def test_the_model_answers_as_before_where_the_pieces_are_the_same(
    made: tuple[Any, Any, Any, np.ndarray, set[int]], tmp_path: Path
) -> None:
    """Would catch vectors of other pieces, and a size that the saved config does not know."""
    model, whole, smaller, kept, _ = made
    model.save_pretrained(tmp_path / "saved")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    before = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole").eval()
    assert again.get_input_embeddings().weight.shape[0] == len(kept)
    text = next(text for text in texts(2, 12) if len(text) > 5)
    with torch.inference_mode():
        new = again(**smaller(text, return_tensors="pt")).logits
        old = before(**whole(text, return_tensors="pt")).logits
    assert torch.allclose(new, old, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_fills_up_with_the_most_frequent_others(kind: str, tmp_path: Path) -> None:
    a_model(kind, tmp_path / "whole")
    total = len(load_tokenizer(str(tmp_path / "whole")))
    least = save_smaller(str(tmp_path / "whole"), {total - 1}, 0, tmp_path / "few")
    middle = (least + total) // 2
    assert least < middle < total
    more = save_smaller(str(tmp_path / "whole"), {total - 1}, middle, tmp_path / "more")
    assert middle <= more <= middle + 5  # a piece brings those that it is merged of
    assert save_smaller(str(tmp_path / "whole"), {total - 1}, 10_000, tmp_path / "all") == total
    few = set(read_kept(tmp_path / "few").tolist())
    added = set(read_kept(tmp_path / "more").tolist()) - few
    assert total - 1 in few
    assert max(added) < max(set(range(total)) - few)  # their ids go by frequency, of the kinds that are trained here


def test_words_that_are_pieces_as_a_whole_cannot_be_left_out(tmp_path: Path) -> None:
    tiny_models.build("bert", tmp_path / "whole")
    with pytest.raises(InputError, match="not made of smaller ones"):
        save_smaller(str(tmp_path / "whole"), {4, 5}, 0, tmp_path / "smaller")


@pytest.mark.parametrize("counts_from_padding", [True, False])
def test_padding_may_move_where_positions_are_not_counted_from_it(counts_from_padding: bool, tmp_path: Path) -> None:
    """RoBERTa counts from it. Would catch positions that are all shifted, and a row of padding that is a piece's."""
    model = a_model("wordpiece", tmp_path / "whole")
    tokenizer = load_tokenizer(str(tmp_path / "whole"))
    last = len(tokenizer) - 1
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(last)
    tokenizer.save_pretrained(tmp_path / "whole")
    config = model.config
    if counts_from_padding:
        config = transformers.RobertaConfig(**tiny_models._SIZES, vocab_size=160, pad_token_id=last)
        config.save_pretrained(tmp_path / "whole")
        with pytest.raises(InputError, match="counts positions by the id of padding"):
            save_smaller(str(tmp_path / "whole"), set(), 0, tmp_path / "smaller")
        return
    count = save_smaller(str(tmp_path / "whole"), set(), 0, tmp_path / "smaller")
    assert load_tokenizer(str(tmp_path / "smaller")).pad_token_id == count - 1


def test_a_token_that_was_added_after_the_training_stays(tmp_path: Path) -> None:
    """As [MASK] of DeBERTa-v3, whose id is beyond the list of pieces. Would catch a crash, and ids that are shifted."""
    tokenizer = a_tokenizer("unigram")
    size = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(["[MASK]"])
    assert tokenizer.token_to_id("[MASK]") == size
    a_model("unigram", tmp_path / "whole")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(tmp_path / "whole")
    count = save_smaller(str(tmp_path / "whole"), {5, 6}, 0, tmp_path / "smaller")
    smaller = load_tokenizer(str(tmp_path / "smaller"))
    assert smaller.convert_tokens_to_ids("[MASK]") == count - 1
    old = read_kept(tmp_path / "smaller")[smaller("a [MASK]")["input_ids"]]
    assert old.tolist() == tokenizer.encode("a [MASK]").ids


def test_a_tokenizer_with_more_pieces_than_vectors_is_refused(tmp_path: Path) -> None:
    model = a_model("wordpiece", tmp_path / "whole")
    model.config.vocab_size = 100
    model.config.save_pretrained(tmp_path / "whole")
    with pytest.raises(InputError, match="no vectors for"):
        save_smaller(str(tmp_path / "whole"), {150}, 0, tmp_path / "smaller")


def test_every_place_of_a_table_is_cut(tmp_path: Path) -> None:
    """BART's encoder and decoder share it. Would catch old vectors under new ids."""
    a_model("bpe", tmp_path / "whole")
    save_smaller(str(tmp_path / "whole"), {5}, 0, tmp_path / "smaller")
    config = transformers.BartConfig(
        vocab_size=160,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=1,
        decoder_attention_heads=1,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        pad_token_id=0,
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    cut_vectors(model, tmp_path / "smaller")
    sizes = {
        module.num_embeddings for name, module in model.named_modules() if name.endswith(("shared", "embed_tokens"))
    }
    assert sizes == {len(read_kept(tmp_path / "smaller"))}


def test_merges_of_pieces_with_a_prefix(tmp_path: Path) -> None:
    """By hand: "##a" and "##b" become "##ab". Would catch a prefix in the middle of a piece."""
    model = {
        "type": "BPE",
        "continuing_subword_prefix": "##",
        "vocab": {"a": 0, "##a": 1, "##b": 2, "##ab": 3, "a##": 4, "aab": 5},
        "merges": [["##a", "##b"], ["a", "##ab"]],
    }
    whole = {"model": model, "added_tokens": []}
    assert kept_pieces(whole, {5}, 0) == [0, 1, 2, 3, 4, 5]
    assert without_others(whole, kept_pieces(whole, {3}, 0))["model"]["merges"] == [["##a", "##b"]]


def test_a_character_without_a_piece_of_its_own_keeps_the_pieces_that_hold_it() -> None:
    """By hand: nothing else can write it. Would catch words that become unknown."""
    vocabulary = {"[UNK]": 0, "a": 1, "##b": 2, "aß": 3, "##bß": 4, "ab": 5, "b": 6, "ßb": 7, "##bb": 8}
    model = {"type": "WordPiece", "continuing_subword_prefix": "##", "unk_token": "[UNK]", "vocab": vocabulary}
    assert kept_pieces({"model": model, "added_tokens": []}, set(), 0) == [0, 1, 2, 3, 4, 6, 7]
    pieces = [["<unk>", 0.0], ["a", -1.0], ["b", -2.0], ["ab", -3.0], ["aß", -4.0], ["<0x0A>", -5.0]]
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": pieces}
    assert kept_pieces({"model": unigram, "added_tokens": []}, set(), 0) == [0, 1, 2, 4, 5]
