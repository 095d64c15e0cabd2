"""What windows gain on long texts: one sentence with an opinion among neutral ones.

Command: `python benchmarks/long_texts.py [--data GLUE_FOLDER] [--seeds 0 1 2] [--lines cut] [--runs FOLDER]`. Hides a
labelled SST-2 sentence among seven from QNLI. Without `--data` it makes texts up, which takes minutes. Differences to
`windows` are paired, with 95 % intervals. Runs resume.
"""

import argparse
import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdc.pipeline.config import metrics
from kdc.pipeline.data.prepared import open_data
from kdc.pipeline.quality.intervals import difference

ROOT = Path(__file__).resolve().parent.parent
_TRAIN, _EVAL, _NEUTRAL, _LEAST_WORDS = 2000, 800, 7, 10
_COMMON = ("--text", "text", "--label", "label", "--student", "teacher")
_STEPS = ("teacher.epochs=1", "teacher.from_probe=off", "quantize.enabled=false")
_NO_TIMES = ("evaluate.memory=false", "evaluate.latency_rows=10", "evaluate.throughput_rows=32", "evaluate.rounds=1")
_REAL = (64, 512, ("teacher.min_steps=250",))
_MADE_UP = (24, 128, ("teacher.min_steps=200", "teacher.learning_rate=3e-3", "run.precision=fp32"))
_SEVERAL = ("data.kind=multilabel", "data.separator=|", "teacher.min_steps=600", "student.allow_majority=true")
LINES = {
    "windows": ("long.mode=windows",),
    "windows-each": ("long.mode=windows", "teacher.window_loss=each"),
    "windows-mean": ("long.mode=windows", "long.join=mean"),
    "windows-noisy-or": ("long.mode=windows", "long.join=noisy-or"),
    "cut": (),
    "whole": (),
}
_BASELINES = ("tfidf",)  # of whole texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="GLUE's folder; without it texts and model are made up")
    parser.add_argument("--several", action="store_true", help="made-up texts with several labels, each by a word")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lines", nargs="+", choices=LINES, default=list(LINES))
    parser.add_argument("--runs", type=Path, default=Path("runs/long"))
    options = parser.parse_args()
    names: list[str] = options.lines
    rows = options.runs / "rows"
    if not (rows / "eval.csv").exists():
        _write_rows(options.data, rows) if options.data else _make_up(rows, several=options.several)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed in options.seeds:
        for name in names:
            found[name].append(_run(rows, name, seed, options.runs / f"{name}-{seed}", options))
            print(name, seed, f"{found[name][-1]['score']:.1f}", file=sys.stderr, flush=True)
    print("| line | score | each seed | difference to windows |\n|---|---:|---:|---:|")
    for name, runs in found.items():
        scores = [run["score"] for run in runs]
        print(f"| {name} | {mean(scores):.1f} | {_each(scores)} | {_gain(runs, found)} |")
    for name in _BASELINES:
        scores = [run["table"][name][run["task"].metrics[0]] for run in next(iter(found.values()))]
        print(f"| {name}, of the whole texts | {mean(scores):.1f} | {_each(scores)} | |")


def _each(scores: list[float]) -> str:
    return ", ".join(f"{score:.1f}" for score in scores)


def _write_rows(glue: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, count, file in (("train", _TRAIN, "train"), ("eval", _EVAL, "dev")):
        draw = random.Random(split)
        opinions = [
            row for row in _rows(glue / "SST-2" / f"{file}.tsv") if len(row["sentence"].split()) >= _LEAST_WORDS
        ]
        neutral = sorted({row["sentence"] for row in _rows(glue / "QNLI" / f"{file}.tsv")})
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(("text", "label"))
            for row in draw.sample(opinions, min(count, len(opinions))):
                sentences = draw.sample(neutral, _NEUTRAL)
                sentences.insert(draw.randint(0, _NEUTRAL), f"{row['sentence'].rstrip(' .')}.")
                writer.writerow((" ".join(sentences), ("negative", "positive")[int(row["label"])]))


def _make_up(folder: Path, *, several: bool) -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny_runs
    from tiny_models import WORDS

    tiny_runs.base_model("bert", folder / "teacher", max_position_embeddings=_MADE_UP[1])
    for split, count in (("train", 1200), ("eval", _EVAL)):
        draw = random.Random(split)
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(("text", "label"))
            for _ in range(count):
                words = draw.choices(WORDS[4:], k=draw.randint(5, 90))
                told = [place for place in (1, 2, 3) if draw.random() < 0.3] if several else [draw.randint(1, 2)]
                for place in told:
                    words.insert(draw.randint(0, len(words)), f"w{place}")
                writer.writerow((" ".join(words), "|".join(f"label-{place}" for place in told)))


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def _run(rows: Path, name: str, seed: int, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    window, whole, own = _REAL if options.data else _MADE_UP
    several = _SEVERAL if options.several else ()
    length = f"data.max_length={whole if name == 'whole' else window}"
    settings = (*_STEPS, *_NO_TIMES, *own, *several, length, f"run.seed={seed}", *LINES[name])
    sets = [part for each in settings for part in ("--set", each)]
    model = ["--teacher", str(rows / "teacher")] if not options.data else ["--family", "minilm"]
    files = ["--train", str(rows / "train.csv"), "--eval", str(rows / "eval.csv"), "--out", str(out)]
    command = [sys.executable, "-m", "kdc", "compress", *files, *model, *_COMMON, *sets]
    with out.with_suffix(".log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    table = json.loads((out / "evaluate" / "table.json").read_text(encoding="utf-8"))
    logits = np.load(out / "evaluate" / "logits.npz")["eval/teacher"]
    task = open_data(out / "data").task
    return {"score": table["teacher"][task.metrics[0]], "table": table, "logits": logits, "run": out, "task": task}


def _gain(runs: list[dict[str, Any]], found: dict[str, list[dict[str, Any]]]) -> str:
    base = found.get("windows")
    if base is None or base is runs:
        return ""
    labels = [np.asarray(open_data(run["run"] / "data").rows("eval")["label"][:]) for run in runs]
    task = runs[0]["task"]
    groups = np.concatenate([np.arange(len(each)) for each in labels])
    mine, theirs = (np.concatenate([run["logits"] for run in each]) for each in (runs, base))
    seen = difference(mine, theirs, np.concatenate(labels), task.kind, task.metrics[0], groups=groups)
    one, other = (
        metrics.compute(logits, np.concatenate(labels), task.kind, task.metrics)[task.metrics[0]]
        for logits in (mine, theirs)
    )
    return f"{one - other:+.1f} ({seen.interval[0]:+.1f} to {seen.interval[1]:+.1f})"


if __name__ == "__main__":
    main()
