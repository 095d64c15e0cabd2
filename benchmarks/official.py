"""The paper's training procedure against `kdc compress` on the same rows, teacher, cores and seconds.

Command: `python benchmarks/official.py --data GLUE_FOLDER [--seconds 120] [--rounds 1]`. QNLI, `minilm`; the teacher is
fine-tuned once into `--runs`.

- official: the procedure as described: rows padded to 512 tokens, random order.
- kdc-paper: recipe `paper-as-described`: rows of similar length, padded to a batch's longest.
- kdc-best: the default recipe.

The procedure's faults are fixed: rows get their own teacher logits, the head is trained, and the schedule ends when the
time is up.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ARMS = {"official": ("paper-as-described", 512), "kdc-paper": ("paper-as-described", None), "kdc-best": ("best", None)}
_TRIAL_STEPS = {"official": 2, "kdc-paper": 20, "kdc-best": 20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/official"))
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        sys.stdout.write(json.dumps(_train(options.arm, options)) + "\n")
        return
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for _ in range(options.rounds):
        for name in ARMS:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--arm", name], stdout=subprocess.PIPE, text=True, check=True
            )
            turns[name].append(json.loads(done.stdout.splitlines()[-1]))
    sys.stdout.write(_table(turns, options.seconds))


def _train(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from kdc.common.memory import own_peak_memory_bytes, reset_peak_memory
    from kdc.pipeline.config import metrics
    from kdc.pipeline.training.batches import Rows
    from kdc.pipeline.training.predict import predict

    run = _run(ARMS[arm][0], options)
    trial = _TRIAL_STEPS[arm]
    began = time.perf_counter()
    _fit(arm, run, trial)
    steps = max(1, int(options.seconds / ((time.perf_counter() - began) / trial)))
    reset_peak_memory()
    began = time.perf_counter()
    model, pad_id = _fit(arm, run, steps)
    seconds = time.perf_counter() - began
    memory = own_peak_memory_bytes()
    tokens = run.data().tokens("student", "eval")
    logits = predict(model, Rows([tokens]), pad_id=pad_id)
    task = run.data().task
    score = metrics.compute(logits, np.asarray(tokens["label"][:]), task.kind, task.metrics)[task.metrics[0]]
    rows = steps * run.config.student.batch_size
    return {"steps": steps, "seconds": seconds, "rows_per_second": rows / seconds, "memory": memory, "score": score}


def _run(recipe: str, options: argparse.Namespace) -> Any:
    from kdc.common.progress import Reporter
    from kdc.pipeline.compress import is_local, prepare_libraries
    from kdc.pipeline.config.resolve import layer_of, resolve
    from kdc.pipeline.run import compress
    from kdc.pipeline.rundir.context import open_run

    flags = {
        "data.task": "qnli",
        "data.data": options.data,
        "run.family": "minilm",
        "run.recipe": recipe,
        "run.out": options.runs,
        "teacher.epochs": 4,
        "run.device": "cpu",
        "run.precision": "fp32",
    }
    config = resolve(flags=layer_of(flags), sets={}, file={})
    prepare_libraries(offline=is_local(config))
    compress(config, reporter=Reporter(quiet=True), until="targets")
    return open_run(options.runs, config, Reporter(quiet=True))


def _fit(arm: str, run: Any, steps: int) -> tuple[Any, int]:
    import numpy as np
    from transformers import set_seed

    from kdc.pipeline.models import loading
    from kdc.pipeline.rundir.files import TEACHER_LOGITS
    from kdc.pipeline.training import adapters
    from kdc.pipeline.training.batches import Rows
    from kdc.pipeline.training.environment import Environment
    from kdc.pipeline.training.finetuning import plan_for
    from kdc.pipeline.training.loop import Objective, train
    from kdc.pipeline.training.students import new_student

    settings, task, pad_to = run.config.student, run.data().task, ARMS[arm][1]
    set_seed(run.config.run.seed)
    loaded, source = new_student(settings.model, task, cut_from=run.cut_from(settings))
    pad_id = loading.load_tokenizer(source).pad_token_id
    model = adapters.with_adapters(loaded.model, loaded.new_modules, settings.lora)
    logits = np.load(run.folder("targets") / TEACHER_LOGITS, mmap_mode="r")
    settings = settings.model_copy(update={"patience": None})
    plan = replace(plan_for(settings, 1, Environment(seed=0)), steps=steps, evaluate_every=steps, pad_to=pad_to)
    with tempfile.TemporaryDirectory() as folder:
        train(
            model,
            Rows([run.data().tokens("student", "train")], logits),
            Rows([run.data().tokens("student", "tune")]),
            pad_id=pad_id,
            objective=Objective(task, alpha=settings.alpha, temperature=settings.temperature),
            plan=plan,
            folder=Path(folder),
        )
    return model, pad_id


def _table(turns: dict[str, list[dict[str, Any]]], seconds: float) -> str:
    def middle(name: str, key: str) -> float:
        return median(turn[key] for turn in turns[name])

    lines = [
        f"| arm | rows/s | x official | peak MB | x official | accuracy after {seconds:.0f} s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in turns:
        pairs = list(zip(turns[name], turns["official"], strict=True))
        ratios = [turn["rows_per_second"] / official["rows_per_second"] for turn, official in pairs]
        memory = [turn["memory"] / official["memory"] for turn, official in pairs]
        scores = ", ".join(f"{turn['score']:.1f}" for turn in turns[name])
        speed, peak = middle(name, "rows_per_second"), middle(name, "memory") / 1e6
        lines.append(f"| {name} | {speed:.1f} | {median(ratios):.1f} | {peak:.0f} | {median(memory):.2f} | {scores} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
