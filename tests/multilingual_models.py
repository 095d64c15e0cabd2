"""Tiny encoders as the multilingual families': their configs, and real SentencePiece tokenizers trained here."""

import csv
import io
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers.convert_slow_tokenizer import generate_merges  # type: ignore[attr-defined]
from transformers.utils import sentencepiece_model_pb2_new

LETTERS = {
    "Latin": "enistrahdulcgmobwfkzvpüäößj",
    "Japanese": "のにいたをはしがてでとるれもかなスト日本人大年会国中見東京時間新聞語",
    "Cyrillic": "оеаинтсрвлкмдпуяыьгзбчйх",
    "Arabic": "اليمنورتبةعدسفهكقحجشطص",
}
MARKERS = {"Latin": ("gut", "schlecht"), "Japanese": ("良い", "悪い")}
_SHAPE = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}


def words(script: str, count: int = 150) -> list[str]:
    draw, letters = random.Random(script), LETTERS[script]
    weights = range(len(letters), 0, -1)
    return ["".join(draw.choices(letters, weights, k=draw.randint(2, 6))) for _ in range(count)]


def sentence(script: str, draw: random.Random, *more: str) -> str:
    chosen = [*draw.choices(words(script), k=draw.randint(2, 6)), *more]
    draw.shuffle(chosen)
    return " ".join(chosen)


def _corpus() -> Iterable[str]:
    draw = random.Random(0)
    for script in LETTERS:
        for _ in range(250):
            yield sentence(script, draw, *MARKERS.get(script, ()))
    yield from ["query: passage: 0123456789"] * 50


def _trained(kind: str, pieces: int, **options: Any) -> Any:
    """A SentencePiece model, as its protocol buffer."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(list(_corpus())),
        model_writer=made,
        model_type=kind,
        vocab_size=pieces,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    proto: Any = sentencepiece_model_pb2_new.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(made.getvalue())
    return proto


def unigram() -> Tokenizer:
    """As xlm-roberta's tokenizer.json, which e5 and the MiniLM have too."""
    proto = _trained("unigram", 700, normalization_rule_name="nmt_nfkc")
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [(name, 0.0) for name in special] + [(piece.piece, piece.score) for piece in proto.pieces[3:]]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("<mask>", 0.0)], unk_id=3))
    tokenizer.normalizer = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([*special, "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def bpe() -> Tokenizer:
    """As mmBERT's tokenizer.json: Gemma 2's pieces, with bytes for unknown characters."""
    proto = _trained("bpe", 900, normalization_rule_name="identity", byte_fallback=True, split_digits=True)
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    scores = {piece.piece: piece.score for piece in proto.pieces[3:]}
    pieces = {piece: place for place, piece in enumerate([*special, *scores])}
    merges = generate_merges(scores, scores)
    made = models.BPE(pieces, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(made)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> $B:1 <eos>:1", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    return tokenizer


# Family -> (config, tokenizer, what the checkpoint's tokenizer_config.json names as its class).
_FAMILIES: dict[str, tuple[str, Any, str | None]] = {
    "e5": ("BertConfig", unigram, "XLMRobertaTokenizer"),
    "multilingual-minilm": ("BertConfig", unigram, None),
    "mmbert": ("ModernBertConfig", bpe, "PreTrainedTokenizerFast"),
}


def build(family: str, folder: Path) -> Path:
    """An encoder without a head and its tokenizer, in the files that the checkpoint has."""
    name, make, tokenizer_class = _FAMILIES[family]
    tokenizer = make()
    torch.manual_seed(0)
    ids: dict[str, Any] = {"pad_token_id": 0}  # though padding is piece 1
    special = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    if family == "mmbert":
        ids |= {"bos_token_id": 2, "eos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1}
        ids |= {"classifier_pooling": "mean", "local_attention": 8}
        special = {"bos_token": "<bos>", "cls_token": "<bos>", "eos_token": "<eos>", "sep_token": "<eos>"}
    # Like 250,037 vectors for 250,002 pieces.
    size = tokenizer.get_vocab_size() + 35
    config = getattr(transformers, name)(**_SHAPE, **ids, vocab_size=size, max_position_embeddings=512)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {**special, "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>", "model_max_length": 512}
    named = {} if tokenizer_class is None else {"tokenizer_class": tokenizer_class}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | named), encoding="utf-8")
    return folder


def write_rows(path: Path, count: int, *, seed: int) -> Path:
    """German and Japanese texts, and whether they praise."""
    draw = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("text", "label"))
        for _ in range(count):
            script, good = draw.choice(("Latin", "Japanese")), draw.random() < 0.5
            writer.writerow((sentence(script, draw, MARKERS[script][not good]), "good" if good else "bad"))
    return path
