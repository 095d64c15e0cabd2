"""A whole run in seconds: tiny models without a head, a task that a tiny model can learn, and `kdc` in a process."""

import csv
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import torch
import transformers
from tiny_models import ARCHITECTURES, GATED, OTHERS, TYPED, WORDS, build_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from kdc.pipeline.config.resolve import layer_of, parse_sets, resolve
from kdc.pipeline.config.settings import Config
from kdc.pipeline.rundir.record import CompressResult

ROOT = Path(__file__).resolve().parent.parent
# Enough for a tiny model to learn, little enough to take a second.
QUICK = (
    "run.precision=fp32",
    "baselines.enabled=false",
    "teacher.epochs=8",
    "teacher.min_steps=0",
    "teacher.learning_rate=3e-3",
    "teacher.evaluations=3",
    "student.epochs=8",
    "student.min_steps=60",
    "student.learning_rate=1e-2",
    "student.evaluations=3",
    "student.lora.r=8",
    "quantize.rounds=1",
    "quantize.calibration_rows=32",
    "evaluate.rounds=1",
    "evaluate.latency_rows=10",
    "evaluate.throughput_rows=32",
    "evaluate.memory=false",
    "export.teacher=false",
)


def base_model(architecture: str, folder: Path, **changes: Any) -> Path:
    """A pretrained-looking encoder without a head, with its tokenizer."""
    class_name, settings, pad_id = (ARCHITECTURES | GATED | OTHERS)[architecture]
    torch.manual_seed(0)
    common = {"vocab_size": 100, "pad_token_id": pad_id}
    if architecture != "xlnet":  # which has no such limit
        common["max_position_embeddings"] = 64
    config = getattr(transformers, class_name)(**(common | settings | changes))
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    build_tokenizer(pad_id, typed=architecture in TYPED).save_pretrained(folder)
    return folder


PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "w", *"0123456789", *(f"##{digit}" for digit in range(10)), "##w"]
PIECES += [*"nevr", *(f"##{letter}" for letter in "nevr")]
SINGLE = len(PIECES)  # what every text can be written with
# What no text uses stands before the rest, so that the other pieces have other numbers without it.
PIECES += [f"never{number}" for number in range(60)] + [f"w{number}" for number in range(90)]


def pieces_model(folder: Path) -> Path:
    """The tiny BERT, with pieces of words in place of words."""
    base_model("bert", folder, vocab_size=len(PIECES))
    tokenizer = Tokenizer(models.WordPiece({piece: place for place, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=48, **names).save_pretrained(folder)
    return folder


def write_rows(path: Path, count: int, *, seed: int, label: Any = None) -> Path:
    """A CSV of pairs `first`, `second` and a label: whether the first text holds the word w1 (else it holds w2)."""
    generator = random.Random(seed)
    label = label or (lambda yes, generator: "yes" if yes else "no")
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("first", "second", "label"))
        for _ in range(count):
            yes = generator.random() < 0.5
            first = generator.choices(WORDS[3:], k=generator.randint(1, 8))
            first.insert(0, "w1" if yes else "w2")
            second = generator.choices(WORDS[3:], k=generator.randint(1, 8))
            writer.writerow((" ".join(first), " ".join(second), label(yes, generator)))
    return path


def config_for(
    folder: Path, teacher: Path, *sets: str, pair: bool = True, flags: dict[str, Any] | None = None
) -> Config:
    """Settings of a quick run on `train.csv` and `eval.csv` in `folder`."""
    given = {
        "data.train": folder / "train.csv",
        "data.eval": folder / "eval.csv",
        "data.text": "first",
        "data.text_pair": "second" if pair else None,
        "run.out": folder / "run",
        "teacher.model": str(teacher),
    }
    return resolve(flags=layer_of(given | (flags or {})), sets=parse_sets([*QUICK, *sets]), file={})


def compress(config: Config, **how: Any) -> CompressResult:
    """Run the pipeline in this process, silently."""
    from kdc.common.progress import Reporter
    from kdc.pipeline.run import compress as run

    return run(config, reporter=Reporter(quiet=True), **how)


def table_of(config: Config) -> dict[str, dict[str, Any]]:
    """Run the whole pipeline in this process, silently; its evaluation: model -> column -> value."""
    return compress(config).metrics


def command(folder: Path, teacher: Path, *more: str) -> list[str]:
    """The same run as a command line."""
    return [sys.executable, "-m", "kdc", *arguments(folder, teacher, *more)]


def arguments(folder: Path, teacher: Path, *more: str) -> list[str]:
    """The same run as arguments of `kdc`."""
    sets = [part for item in QUICK for part in ("--set", item)]
    return [
        "compress",
        "--train",
        str(folder / "train.csv"),
        "--eval",
        str(folder / "eval.csv"),
        "--text",
        "first",
        "--text-pair",
        "second",
        "--teacher",
        str(teacher),
        "--out",
        str(folder / "run"),
        *sets,
        *more,
    ]


def kdc(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`kdc` in a process of its own, offline, one thread."""
    return forked.run(list(arguments), environment, timeout=1200)
