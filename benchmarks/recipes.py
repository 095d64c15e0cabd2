"""Ablations of the teacher's and student's recipes, one factor at a time, on real rows.

Command: `python benchmarks/recipes.py --data GLUE_FOLDER [--seeds 0] [--only layers-last,rank-64]`; `bank`, `rare` and
`cola` need `--more FOLDER` (see `quality.py`). Takes hours; runs resume. Each variant changes one thing of `teacher` or
of its student `best`. Gains have 95 % intervals over groups of rows, not over seeds. Seconds exclude the search of
learning rates.

SST-2 is judged on 3,000 sentences of its training file (at least ten words, like 90 % of dev), without their phrases in
training. `bank` and `cola` have other evaluation rows than `quality.py` reports; `rare` has six training rows of every
second class. QNLI has no other rows: choose by the tuning set.
"""

import argparse
import csv
import json
import random
import shutil
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.quality import cut_splits
from benchmarks.study import ALL_CELLS, SHARED, copy_stages, in_own_process

TASKS: dict[str, dict[str, Any]] = {
    "sst2": {"data.task": "sst2", "data.max_train_rows": 12000, "teacher.epochs": 2.0, "student.epochs": 2.0},
    "qnli": {"data.task": "qnli", "teacher.epochs": 4.0, "student.epochs": 4.0, "student.min_steps": 800},
    "bank": {"data.text": "text", "data.label": "category"},
    "rare": {"data.text": "text", "data.label": "category"},
    "cola": {"data.task": "cola"},
}
_SCREENS = "screened-3"
_SCREEN_TRAIN, _SCREEN_ROWS, _SCREEN_WORDS = 14_000, 3_000, 10
UNLABELED = {"sst2": "SST-2/unlabelled.tsv", "qnli": "QNLI/unlabelled.tsv"}
_ROWS_OF_A_RARE_CLASS = 6
_BY_THRESHOLD = ", from a threshold on"
_SHORT = {"student.min_steps": 200, "student.epochs": 0.1, "student.evaluations": 2}
# Settings that replace the recipe's. "steps" and teacher.epochs multiply the task's.
VARIANTS: dict[str, dict[str, Any]] = {
    "teacher": {},
    "teacher-epochs-double": {"teacher.epochs": 2},
    "teacher-epochs-triple": {"teacher.epochs": 3},
    "teacher-rate-half": {"teacher.learning_rate": 5e-5, "teacher.head_learning_rate": 2e-3},
    "teacher-rate-double": {"teacher.learning_rate": 2e-4, "teacher.head_learning_rate": 2e-3},
    "teacher-one-rate": {"teacher.head_learning_rate": 1e-4},
    "teacher-first-token": {"teacher.pooling": "first"},
    "teacher-no-dropout": {"teacher.dropout": 0.0},
    "teacher-search": {"teacher.search": "quick"},
    "teacher-small-steps": {"teacher.batch_size": 16, "teacher.learning_rate": 5e-5},
    "teacher-paper": {
        "teacher.batch_size": 16,
        "teacher.learning_rate": 5e-5,
        "teacher.head_learning_rate": 5e-5,
        "teacher.warmup": 0.0,
        "teacher.kept_step": "last",
        "teacher.pooling": "first",
        "teacher.min_steps": 0,
    },
    "teacher-fp32": {"run.precision": "fp32"},
    "teacher-balanced": {"teacher.class_weights": "balanced"},
    "best": {},
    "first-token": {"student.pooling": "first"},
    "layers-first": {"student.model": "layers:first-half"},
    "layers-spread": {"student.model": "layers:every-second"},
    "layers-0-3-5": {"student.model": "layers:0,3,5"},
    "layers-last": {"student.model": "layers:3,4,5"},
    "layers-two": {"student.model": "layers:0,5"},
    "layers-two-first": {"student.model": "layers:0,1"},
    # In int8, one is 10 % slower than two whole layers, the others as fast as three.
    "narrow-like-two": {"student.model": "layers:0,1,5,ffn=768"},
    "narrow-like-three": {"student.model": "layers:0,1,2,5,ffn=768"},
    "narrow-like-three-all-weights": {
        "student.model": "layers:0,1,2,5,ffn=768",
        "student.method": "full",
        "student.learning_rate": 1e-4,
    },
    "short": _SHORT,
    "short-layers-first": {"student.model": "layers:first-half", **_SHORT},
    "cut-before": {"student.cut_from": "pretrained"},
    "query-value": {"student.lora.targets": "query-value"},
    "no-dropout": {"student.lora.dropout": 0.0},
    "rank-8": {"student.lora.r": 8, "student.lora.alpha": 16},
    "rank-64": {"student.lora.r": 64, "student.lora.alpha": 128},
    "rslora": {"student.lora.rslora": True},
    "all-weights": {"student.method": "full", "student.learning_rate": 1e-4},
    "rate-half": {"student.learning_rate": 5e-4},
    "rate-double": {"student.learning_rate": 2e-3},
    "steps-half": {"steps": 0.5},
    "steps-double": {"steps": 2},
    "T-1": {"student.temperature": 1.0},
    "T-4": {"student.temperature": 4.0},
    "alpha-0.5": {"student.alpha": 0.5},
    "alpha-1": {"student.alpha": 1.0},
    "labels-only": {"student.alpha": 0.0},
    "calibrated": {"targets.calibrate": True},
    "unlabelled": {"unlabelled": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--more", type=Path, help="folder with banking77-train.csv and cola-train.tsv")
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["sst2", "qnli"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", help="names of variants, separated by commas; what they change is always there")
    options = parser.parse_args()
    options.runs /= _SCREENS  # separates runs on other rows
    names = list(VARIANTS) if options.only is None else options.only.split(",")
    unknown = sorted(set(names) - set(VARIANTS))
    if unknown:
        parser.error(f"no such variants: {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    names = list(dict.fromkeys([*map(_changed, names), *names]))
    if "sst2" in options.tasks:
        _write_screen(options.data / "SST-2", options.runs / "screen" / "SST-2")
    if not {"bank", "rare", "cola"}.isdisjoint(options.tasks) and options.more is None:
        parser.error("the tasks bank, rare and cola need --more")
    if options.more is not None and not (options.runs / "screen" / "CoLA" / "dev.tsv").exists():
        cut_splits(options.more, options.runs / "screen", screen=True)
    if "rare" in options.tasks:
        _write_rare(options.runs / "screen" / "bank", options.runs / "screen" / "rare")
    runs = {
        (task, name): [_train(task, name, seed, options) for seed in options.seeds]
        for task in options.tasks
        for name in names
        if name != "unlabelled" or task in UNLABELED
    }
    for task in options.tasks:
        shown = {name: runs[task, name] for name in names if (task, name) in runs}
        if task == "cola":
            teachers = [name for name in shown if name.startswith("teacher")]
            shown |= {f"{name}{_BY_THRESHOLD}": [_by_threshold(run) for run in shown[name]] for name in teachers}
        sys.stdout.write(_table(task, shown))


def _changed(name: str) -> str:
    return "teacher" if name.startswith("teacher") else "best"


def _write_screen(source: Path, out: Path) -> None:
    if (out / "dev.tsv").exists():
        return
    with (source / "train.tsv").open(encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
    random.Random(0).shuffle(rows)
    parts: set[str] = set()  # earlier sentences' phrases
    sentences = []
    for row in sorted(rows, key=lambda row: -len(row[0].split())):  # equal lengths stay shuffled
        text = " ".join(row[0].split())
        if text not in parts and len(text.split()) >= _SCREEN_WORDS:
            sentences.append(row)
            parts |= _parts_of(text)
    held_out = random.Random(0).sample(sentences, _SCREEN_ROWS)
    theirs = set().union(*(_parts_of(" ".join(row[0].split())) for row in held_out))
    free = [row for row in rows if " ".join(row[0].split()) not in theirs]
    train, rest = free[:_SCREEN_TRAIN], free[_SCREEN_TRAIN:]
    out.mkdir(parents=True, exist_ok=True)
    for name, head, part in (
        ("train.tsv", header, train),
        ("unlabelled.tsv", header[:1], [[row[0]] for row in rest]),
        ("dev.tsv", header, held_out),
    ):  # dev last: it marks completion
        (out / name).write_text("".join("\t".join(row) + "\n" for row in (head, *part)), encoding="utf-8")


def _write_rare(source: Path, out: Path) -> None:
    if (out / "eval.csv").exists():
        return
    with (source / "train.csv").open(encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)
    rare, left = sorted({row[1] for row in rows})[::2], []
    seen = dict.fromkeys(rare, 0)
    for row in rows:
        if row[1] in seen:
            seen[row[1]] += 1
        if seen.get(row[1], 0) <= _ROWS_OF_A_RARE_CLASS:
            left.append(row)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "train.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *left])
    shutil.copyfile(source / "eval.csv", out / "eval.csv")


def _parts_of(text: str) -> set[str]:
    words = text.split()
    return {" ".join(words[start:end]) for start in range(len(words)) for end in range(start + 1, len(words) + 1)}


def _train(task: str, name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    shared = (options.runs / f"{task}-{seed}").absolute()
    file, teacher = shared / "variants" / f"{name}.json", shared / "teacher"
    if name != "teacher":
        _train(task, "teacher", seed, options)
    out, is_teacher = shared / name, _changed(name) == "teacher"
    if not file.exists():
        sys.stderr.write(f"{task} {name} seed {seed}\n")
        if name != "teacher":
            copy_stages(teacher, out, SHARED)
        result, logits = in_own_process(_measure, _call(task, name, seed, out, options), is_teacher)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file.with_suffix(".npz"), eval=logits)
        file.write_text(json.dumps(result), encoding="utf-8")
    if not is_teacher:
        shutil.rmtree(out, ignore_errors=True)
    with np.load(file.with_suffix(".npz")) as answers:
        run = out if is_teacher else teacher
        return json.loads(file.read_text(encoding="utf-8")) | {"logits": answers["eval"], "run": run}


def _measure(call: dict[str, Any], is_teacher: bool) -> tuple[dict[str, Any], Any]:
    import kdc

    stages = kdc.compress(until="evaluate", **call).stages
    name, stage = ("teacher", "teacher") if is_teacher else ("merged", "student")
    row, trained = stages["evaluate"].metrics["table"][name], stages[stage].metrics
    scores = {metric: row[metric] for metric in trained["tune"]}
    with np.load(call["run"]["out"] / "evaluate" / "logits.npz") as answers:
        return {"scores": scores, "tune": trained["tune"], "seconds": trained["seconds"]}, answers[f"eval/{name}"]


def _by_threshold(run: dict[str, Any]) -> dict[str, Any]:
    """Applies the threshold of `--aim matthews`, as a shift of logits."""
    from kdc.pipeline.config import metrics
    from kdc.pipeline.config.aims import parse_aim
    from kdc.pipeline.data.prepared import open_data
    from kdc.pipeline.quality.operating import choose
    from kdc.serving.engine.engine import activate

    data = open_data(run["run"] / "data")
    rows = data.rows("tune")
    labels = np.asarray(rows["label"][:])
    tuning = np.load(run["run"] / "targets" / "logits.npy")[np.asarray(rows["row"][:])]
    threshold = choose(activate(tuning, "classification")[:, 1], labels == 1, parse_aim("matthews")).threshold
    odds = np.array([0.0, np.log(threshold / (1 - threshold))])
    held_out = np.asarray(data.rows(data.eval_splits[0])["label"][:])
    scores, tune = (
        metrics.compute(logits - odds, truth, "classification", ("matthews",))
        for logits, truth in ((run["logits"], held_out), (tuning, labels))
    )
    return run | {"logits": run["logits"] - odds, "scores": scores, "tune": tune}


def _gain(metric: str, runs: list[dict[str, Any]], bases: list[dict[str, Any]]) -> tuple[float, float]:
    from kdc.pipeline.data.prepared import open_data
    from kdc.pipeline.quality.intervals import difference

    data = [open_data(run["run"] / "data") for run in bases]
    labels = np.concatenate([np.asarray(each.rows("eval")["label"][:]) for each in data])
    groups = np.concatenate([each.groups("eval") for each in data])  # equal in all seeds
    mine, theirs = (np.concatenate([run["logits"] for run in each]) for each in (runs, bases))
    return difference(mine, theirs, labels, "classification", metric, groups=groups).interval


def _call(task: str, name: str, seed: int, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    from kdc.pipeline.config.resolve import layer_of, resolve

    changes = dict(VARIANTS[name])
    folder = options.data if task == "qnli" else options.runs / "screen"
    rows: dict[str, Any] = {"data.data": folder.absolute()}
    if task in ("bank", "rare"):
        rows = {f"data.{split}": (folder / task / f"{split}.csv").absolute() for split in ("train", "eval")}
    given = {**ALL_CELLS, "run.recipe": "best", "run.family": "minilm", "run.seed": seed, "run.out": out}
    if _changed(name) == "teacher":
        given["student.model"] = "teacher"
    flags: dict[str, Any] = {**given, **rows, **TASKS[task]}
    if changes.pop("unlabelled", False):
        flags["data.unlabeled"] = (folder / UNLABELED[task]).absolute()
    factor = changes.pop("steps", 1)
    own = resolve(flags=layer_of(flags), sets={}, file={})
    student, passes = own.student, own.teacher.epochs * changes.pop("teacher.epochs", 1)
    flags |= {"student.min_steps": round(factor * student.min_steps), "student.epochs": factor * student.epochs}
    flags["teacher.epochs"] = passes
    return layer_of(flags | changes)


def _table(task: str, variants: dict[str, list[dict[str, Any]]]) -> str:
    metric = {"cola": "matthews", "rare": "macro_f1"}.get(task, "accuracy")
    seeds = len(next(iter(variants.values())))
    rows = "dev" if task == "qnli" else "held out"
    lines = [
        f"\n{task}, {metric}, {seeds} seed{'s' * (seeds > 1)}\n",
        f"| variant | {rows} | gain, its interval, each seed | tuning set | gain | training s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, runs in variants.items():
        best = variants[_changed(name)]
        dev, tune = [run["scores"][metric] for run in runs], [run["tune"][metric] for run in runs]
        gains = [run["scores"][metric] - base["scores"][metric] for run, base in zip(runs, best, strict=True)]
        chosen = mean(run["tune"][metric] - base["tune"][metric] for run, base in zip(runs, best, strict=True))
        low, high = _gain(metric, runs, best) if best is not runs else (0.0, 0.0)
        each = f"; {', '.join(f'{gain:+.1f}' for gain in gains)}" if len(gains) > 1 else ""
        seconds = mean(run["seconds"] for run in runs)
        gain = f"{mean(gains):+.1f} ({low:+.1f} to {high:+.1f}{each})"
        lines.append(f"| {name} | {_spread(dev)} | {gain} | {_spread(tune)} | {chosen:+.1f} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
