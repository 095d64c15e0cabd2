"""Flipped labels: how many of them does `kdc compress --audit-labels` find, and what does mending gain?

Command: `python benchmarks/label_errors.py --data GLUE_FOLDER [--rows 3000] [--flipped 0.1] [--seed 0] [--set
teacher.epochs=2] [--json]`. Needs the MiniLM weights (requirements-minilm.txt). Runs in `--runs` resume.

Labels are flipped at random, whatever the text: the kindest case. Teachers learn SST-2 from the noisy, the mended (each
found row gets its suggested label) and the clean labels; people's labels of 3,000 other sentences judge. Control:
TF-IDF with logistic regression, on the same folds and by the same rule. "At k" are the first k rows by margin; k is the
number of flips.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.quality import hold_sentences
from kdc.pipeline.config.metrics import Outputs
from kdc.pipeline.data.overlap import Ints, Mask
from kdc.pipeline.data.prepared import open_data, texts_of
from kdc.pipeline.models import loading
from kdc.pipeline.quality.intervals import difference
from kdc.pipeline.quality.label_errors import find_label_errors
from kdc.pipeline.stages.label_errors import FOLDS, TABLE
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.folds import assign_folds
from kdc.pipeline.training.predict import predict
from kdc.serving.engine.engine import activate

_NAMES = ("negative", "positive")


def read(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        _, *rows = csv.reader(stream)
    return rows


def write(path: Path, rows: list[Any]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])


def make_tables(options: argparse.Namespace) -> tuple[list[list[str]], set[int]]:
    """The noisy rows, and the indices of flipped rows."""
    hold_sentences(options.data / "SST-2" / "train.tsv", options.runs / "rows")
    tables = {name: read(options.runs / "rows" / f"{name}.csv") for name in ("eval", "train")}
    named = {name: [[text, _NAMES[int(label)]] for text, label in rows] for name, rows in tables.items()}
    random = np.random.default_rng(options.seed)
    clean = [named["train"][at] for at in random.permutation(len(named["train"]))[: options.rows]]
    flipped = set(random.permutation(len(clean))[: round(options.flipped * len(clean))].tolist())
    noisy = [[text, _other(label) if at in flipped else label] for at, (text, label) in enumerate(clean)]
    for name, rows in (("eval", named["eval"]), ("clean", clean), ("noisy", noisy)):
        write(options.runs / f"{name}.csv", rows)
    return noisy, flipped


def _other(label: str) -> str:
    return _NAMES[1 - _NAMES.index(label)]


def train(name: str, until: str, options: argparse.Namespace, *more: str) -> Outputs:
    """The teacher's logits of the evaluation rows."""
    root = options.runs / f"run-{name}"
    command = [sys.executable, "-m", "kdc", "compress", "--train", str(options.runs / f"{name}.csv"), "--text", "text"]
    command += ["--eval", str(options.runs / "eval.csv"), "--family", "minilm", "--metric", "accuracy"]
    command += ["--out", str(root), "--until", until, *more, "--set", "baselines.enabled=false"]
    command += [part for each in [f"run.seed={options.seed}", *options.set] for part in ("--set", each)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    source = str(root / "teacher" / "model")
    data = open_data(root / "data")
    model = loading.load_model(source, data.task).model
    return predict(model, Rows([data.tokens("teacher", "eval")]), pad_id=loading.load_tokenizer(source).pad_token_id)


def scores_of(probabilities: Outputs, labels: Ints, wrong: Mask) -> dict[str, float]:
    """Percentages of found rows that were flipped, and the reverse. `wrong` (rows,) marks flipped rows."""
    errors = find_label_errors(probabilities, labels)
    own = probabilities[np.arange(len(labels)), labels]
    first = np.argsort(own, kind="stable")[: wrong.sum()]  # two classes: the margin's order
    hits = int(wrong[errors.rows].sum())
    return {
        "found": len(errors.rows),
        "precision": 100 * hits / max(1, len(errors.rows)),
        "recall": 100 * hits / int(wrong.sum()),
        "precision_at_k": 100 * float(wrong[first].mean()),
    }


def control(texts: list[Any], labels: Ints, folds: Ints) -> Outputs:
    """Out-of-fold probabilities (rows, 2)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    probabilities = np.empty((len(labels), 2))
    for number in range(FOLDS):
        model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10))
        model.fit([text for text, fold in zip(texts, folds, strict=True) if fold != number], labels[folds != number])
        held_out = [text for text, fold in zip(texts, folds, strict=True) if fold == number]
        probabilities[folds == number] = model.predict_proba(held_out)
    return probabilities


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of GLUE")
    parser.add_argument("--runs", type=Path, default=Path("runs/label-errors"))
    parser.add_argument("--rows", type=int, default=3000, help="training rows to draw")
    parser.add_argument("--flipped", type=float, default=0.1, help="share of labels to flip, 0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="a setting of kdc compress, section.key=value")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    options = parser.parse_args()
    began = time.monotonic()
    noisy, flipped = make_tables(options)
    logits = {"noisy": train("noisy", "label_errors", options, "--audit-labels")}
    for row, _, _, suggested, *_ in read(options.runs / "run-noisy" / TABLE):
        noisy[int(row) - 1][1] = suggested
    write(options.runs / "mended.csv", noisy)
    logits |= {name: train(name, "teacher", options) for name in ("mended", "clean")}

    data = open_data(options.runs / "run-noisy" / "data")
    rows = data.rows("train")
    labels = np.asarray(rows["label"][:])
    wrong = np.array([row - 1 in flipped for row in rows["source_row"][:]])
    folds = assign_folds(data.groups("train"), FOLDS, options.seed)
    own = np.empty((len(labels), 2), dtype=np.float32)
    for number in range(FOLDS):
        own[folds == number] = np.load(options.runs / "run-noisy" / "label_errors" / f"fold-{number + 1}.npy")
    people = np.asarray(data.rows("eval")["label"][:])
    figures: dict[str, Any] = {"rows": len(labels), "flipped": int(wrong.sum())}
    figures["teacher"] = scores_of(activate(own, "classification"), labels, wrong)
    figures["tfidf"] = scores_of(control(texts_of(rows), labels, folds), labels, wrong)
    figures["accuracy"] = {name: 100 * float((each.argmax(1) == people).mean()) for name, each in logits.items()}
    gain = difference(logits["mended"], logits["noisy"], people, "classification", "accuracy")
    figures["mended_minus_noisy"] = gain.interval
    figures["seconds"] = round(time.monotonic() - began)
    print(json.dumps(figures) if options.json else json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
