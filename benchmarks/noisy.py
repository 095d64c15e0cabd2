"""A stub of a hosted model that is right on 80 % of the evaluation rows, as files for `kdc compress`.

Command: `python benchmarks/noisy.py RUN --train FILE --rows 4000 --out OUT [--accuracy 80] [--seed 0]`. RUN was made
with `--until teacher`. Its teacher, with normal noise on its logits (one draw a text), answers other rows of FILE, and
RUN's evaluation rows. Files have columns `text` and `label`, and `scores.csv` a probability for each label:

- `OUT/noisy`: the stub's answers are the training labels and the teacher's scores.
- `OUT/people`: the control. People's labels are both, but the stub stays the teacher of the evaluation rows.

Continue with docs/benchmarks/noisy-upstream.md.
"""

import argparse
import csv
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdc.pipeline.config.metrics import Floats, Labels
from kdc.pipeline.data.prepared import open_data, read_labelled, texts_of
from kdc.pipeline.models import loading
from kdc.serving.engine.engine import activate

_BATCH = 64
_HALVINGS = 40
_SURE = 0.95  # of a person's label, as kdc takes a bare answer


def unseen(run: Path, file: Path, rows: int, seed: int) -> tuple[list[str], Labels]:
    """New texts of `file`, each with its first label."""
    data = open_data(run / "data")
    texts, labels, _ = read_labelled(file, data.task)
    seen = {text for split in ("train", "tune", "eval") for text in texts_of(data.rows(split))}
    first: dict[Any, int] = {}
    for text, label in zip(texts, labels, strict=True):
        if text not in seen:
            first.setdefault(text, label)
    drawn = np.random.default_rng(seed).permutation(len(first))[:rows]
    names = list(first)
    return [names[at] for at in drawn], np.array([first[names[at]] for at in drawn])


def logits_of(run: Path, texts: Sequence[str]) -> Floats:
    """The teacher's logits (texts, classes)."""
    import torch

    folder, task = str(run / "teacher" / "model"), open_data(run / "data").task
    model, tokenizer = loading.load_model(folder, task).model.eval(), loading.load_tokenizer(folder)
    by_length = sorted(range(len(texts)), key=lambda at: len(texts[at]))  # less padding
    logits = np.empty((len(texts), task.outputs))
    for start in range(0, len(texts), _BATCH):
        batch = by_length[start : start + _BATCH]
        tokens = tokenizer(
            [texts[at] for at in batch], padding=True, truncation=True, max_length=task.max_length, return_tensors="pt"
        )
        with torch.inference_mode():
            logits[batch] = model(**tokens).logits.float().numpy()
    return logits


def scale_for(accuracy: float, logits: Floats, noise: Floats, labels: Labels) -> float:
    """The noise's standard deviation that leaves this `accuracy`, 0 to 1."""
    low, high = 0.0, 100.0
    if (logits.argmax(axis=1) == labels).mean() < accuracy:
        raise SystemExit("the teacher is less accurate than the stub should be")
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_better = ((logits + middle * noise).argmax(axis=1) == labels).mean() > accuracy
        low, high = (middle, high) if is_better else (low, middle)
    return high


def write(
    folder: Path,
    names: Sequence[str],
    train: tuple[Sequence[str], Labels],
    evaluation: tuple[Sequence[str], Labels],
    probabilities: Floats,
) -> None:
    """`probabilities` (rows, classes) are of the training rows, then of the evaluation rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (texts, labels) in (("train", train), ("eval", evaluation)):
        _write(folder / f"{name}.csv", ("text", "label"), zip(texts, (names[label] for label in labels), strict=True))
    texts = [*train[0], *evaluation[0]]
    cells = ((text, *(f"{cell:.7f}" for cell in row)) for text, row in zip(texts, probabilities, strict=True))
    _write(folder / "scores.csv", ("text", *names), cells)


def _write(path: Path, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([titles, *rows])


def as_probabilities(labels: Labels, classes: int) -> Floats:
    probabilities = np.full((len(labels), classes), (1 - _SURE) / (classes - 1))
    probabilities[np.arange(len(labels)), labels] = _SURE
    return probabilities


def _told(name: str, answers: NDArray[np.intp], labels: Labels) -> str:
    return f"{name}: {len(labels)} rows, {100 * float((answers == labels).mean()):.1f} % like people's labels"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a run made with --until teacher")
    parser.add_argument("--train", type=Path, required=True, help="labelled file, with the columns of the run's")
    parser.add_argument("--rows", type=int, required=True, help="training rows to draw")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--accuracy", type=float, default=80.0, help="on people's labels of the evaluation rows, in %%")
    parser.add_argument("--seed", type=int, default=0, help="of the rows and of the noise")
    options = parser.parse_args()
    data = open_data(options.run / "data")
    if data.task.text_pair is not None:
        parser.error("rows of two texts are not supported")
    rows = data.rows(data.eval_splits[0])
    eval_texts, eval_labels = list(rows["text"][:]), np.asarray(rows["label"][:])
    texts, labels = unseen(options.run, options.train, options.rows, options.seed)
    clean = logits_of(options.run, [*texts, *eval_texts])
    noise = np.random.default_rng(options.seed).standard_normal(clean.shape)
    size = len(texts)
    scale = scale_for(options.accuracy / 100, clean[size:], noise[size:], eval_labels)
    probabilities = activate((clean + scale * noise).astype(np.float32), data.task.kind, 1.0)
    answers, names, evaluation = probabilities.argmax(axis=1), data.task.labels, (eval_texts, eval_labels)
    write(options.out / "noisy", names, (texts, answers[:size]), evaluation, probabilities)
    mixed = np.concatenate([as_probabilities(labels, len(names)), probabilities[size:]])
    write(options.out / "people", names, (texts, labels), evaluation, mixed)
    print(_told("without noise, evaluation", clean[size:].argmax(axis=1), eval_labels))
    print(f"standard deviation of the noise: {scale:.2f}")
    print(_told("stub, training", answers[:size], labels))
    print(_told("stub, evaluation", answers[size:], eval_labels))


if __name__ == "__main__":
    main()
