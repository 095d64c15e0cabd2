"""One cell of a study, in a process of its own, so that its peak memory is its own and its failure nobody else's.

`python -m kdc.tools.study.cell` reads the cell, its settings and the place of its result as one JSON object on stdin,
trains, measures on the evaluation split, and writes the result last. Where the object is a whole line and stdin stays
open, the process ends with the one that holds the other end.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from kdc.common.errors import InputError, KdcError
from kdc.pipeline.config.settings import Config

_LAST_SHARED = "targets"  # the stage up to which cells have everything in common
_TIMED_ROWS, _TIMED_ROUNDS = 512, 3


def make_shared(config: Config) -> None:
    """What all cells of a run directory share: data, teacher and targets, as far as they are missing.

    Args:
        config: of any of them; `run.out` is the run directory.

    Raises:
        InputError, KdcError: as the stages say; also while another process works in the run directory.
    """
    from kdc.common.progress import Reporter
    from kdc.pipeline.run import compress

    compress(config, reporter=Reporter(quiet=True), until=_LAST_SHARED)


def run_cell(method: str, config: Config, work: Path) -> dict[str, Any]:
    """Train and measure.

    Args:
        method: of `grid.METHODS`.
        config: its settings; `run.out` is the run directory that cells share, see `make_shared`.
        work: an empty folder for what the training writes.

    Returns:
        scores (split and metric to points), tune (those of the tuning slice), collapsed (one answer for all rows),
        seconds of training, peak_memory_bytes while training (on CUDA: of the device), inference_s_per_1000_rows,
        parameters, trainable_parameters, steps, device.

    Raises:
        InputError: the run directory does not hold what cells share.
        KdcError: as the stages say.
    """
    from kdc.common.memory import own_peak_memory_bytes, reset_peak_memory
    from kdc.common.progress import Reporter
    from kdc.pipeline.run import open_run

    assert config.run.out is not None
    run = open_run(config.run.out, config, Reporter(quiet=True))
    if not (run.folder(_LAST_SHARED) / "stage.json").exists():
        raise InputError(
            "this machine does not see the teacher that the cell learns from",
            given=run.root.absolute(),
            remedy="a study's --out on a disk that all nodes share, under the same path",
        )
    if method == "fft":
        state = json.loads((run.folder("teacher") / "stage.json").read_text(encoding="utf-8"))
        summary = state["metrics"]
        memory = summary.get("peak_memory_bytes") or state["peak_memory_bytes"]
        model, role = _load(run.folder("teacher") / "model", run), "teacher"
    else:
        reset_peak_memory()
        summary, model, role = _train(method, run, work)
        memory = summary.get("peak_memory_bytes") or own_peak_memory_bytes()
    return {
        **_measure(run, model, role),
        "tune": summary["tune"],
        "seconds": summary["seconds"],
        "steps": summary["steps"],
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "trainable_parameters": summary["trainable_parameters"],
        "peak_memory_bytes": memory,
        "device": run.device,
    }


def _load(folder: Path, run: Any) -> Any:
    from kdc.pipeline.training import models

    return models.load_model(str(folder), run.data().task).model


def _train(method: str, run: Any, work: Path) -> tuple[dict[str, Any], Any, str]:
    """What the training reported, the model with its adapters merged, and whose tokens it reads."""
    from kdc.pipeline.stages.controls import teacher_lora
    from kdc.pipeline.stages.merge import load_student
    from kdc.pipeline.stages.student import distil, distillation

    if method == "lora":
        return teacher_lora(run, work), _load(work / "model", run), "teacher"
    settings = run.config.student
    learns_from = distillation(run, settings) if method == "kd-lora" else None
    summary = distil(run, settings, learns_from, work)
    student = load_student(work)
    return summary, student.merge_and_unload() if (work / "adapter").exists() else student, "student"


def _measure(run: Any, model: Any, role: str) -> dict[str, Any]:
    import numpy as np

    from kdc.pipeline.quality import metrics
    from kdc.pipeline.training import models
    from kdc.pipeline.training.batches import Rows
    from kdc.pipeline.training.predict import predict

    data, config = run.data(), run.config
    own = role == "student" and not config.student.model.startswith("layers:")
    source = config.student.model if own else config.teacher.model
    pad_id = models.load_tokenizer(source).pad_token_id
    model = model.to(run.device).eval()
    scores: dict[str, float] = {}
    collapsed = False
    for split in data.eval_splits:
        tokens = data.tokens(role, split)
        logits = predict(model, Rows([tokens]), pad_id=pad_id)
        labels = np.asarray(tokens["label"][:])
        suffix = split.removeprefix("eval")
        found = metrics.compute(logits, labels, data.task.kind, data.task.metrics)
        scores |= {name + suffix: value for name, value in found.items()}
        collapsed = collapsed or metrics.is_constant(logits, data.task.kind)
    tokens = data.tokens(role, data.eval_splits[0])
    some = Rows([tokens.select(range(min(_TIMED_ROWS, len(tokens))))])
    times = []
    for _ in range(_TIMED_ROUNDS):
        began = time.perf_counter()
        predict(model, some, pad_id=pad_id)
        times.append(time.perf_counter() - began)
    return {"scores": scores, "collapsed": collapsed, "inference_s_per_1000_rows": 1000 * median(times) / len(some)}


def _read() -> Any:
    """What is wanted. A caller that keeps stdin open is watched."""
    line = sys.stdin.readline()
    if line.endswith("\n"):
        threading.Thread(target=_end_with_caller, daemon=True).start()
    return json.loads(line)


def _end_with_caller() -> None:
    """Else a cell whose caller was killed would train on, beside the one that is begun in its place."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


def main() -> None:
    """Read, train, write; errors of ours on stderr, with their exit code."""
    wanted = _read()
    shared = wanted.pop("shared", "make")
    config, file = Config.model_validate(wanted["config"]), Path(wanted["file"])
    file.parent.mkdir(parents=True, exist_ok=True)
    work = file.with_suffix(".work")
    try:
        from kdc.pipeline.compress import prepare_libraries

        prepare_libraries(config)
        if shared != "there":
            make_shared(config)
        if shared == "only":
            return
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        result = run_cell(wanted["cell"]["method"], config, work)
    except KdcError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps({**wanted, **result}, indent=2), encoding="utf-8")
    os.replace(temporary, file)


if __name__ == "__main__":
    main()
