"""Does a student without layers that ends its training early lose anything, and what does it gain on wrong labels?

Command: `python benchmarks/early_end.py RUN ... [--student static] [--set student.patience=99]`. Trains each run's
student again, and scores it on the evaluation rows in fp32. Seconds are processor time.

`kdc compress ... --student static --until targets` makes a run. Tables with wrong labels come from
`benchmarks/replace.py --targets hard`.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--student", default="static")
    parser.add_argument("--set", nargs="+", default=[], help="settings, student.key=value")
    options = parser.parse_args()
    sys.stdout.write("| run | score | kept step | steps | CPU s |\n|---|---:|---:|---:|---:|\n")
    for run in options.runs:
        with tempfile.TemporaryDirectory() as work:
            cells = trained(run, options.student, options.set, Path(work))
        sys.stdout.write(f"| {run.name} | {' | '.join(cells)} |\n")
        sys.stdout.flush()


def trained(root: Path, student: str, sets: list[str], work: Path) -> tuple[str, ...]:
    from kdc.common.progress import Reporter
    from kdc.pipeline.config.metrics import compute
    from kdc.pipeline.config.resolve import parse_sets
    from kdc.pipeline.config.settings import Config
    from kdc.pipeline.models import loading
    from kdc.pipeline.rundir.context import open_run
    from kdc.pipeline.rundir.files import TEACHER_LOGITS
    from kdc.pipeline.training.batches import Rows
    from kdc.pipeline.training.predict import predict
    from kdc.pipeline.training.students import distil, merged_student

    config = Config.model_validate_json((root / "config.json").read_text(encoding="utf-8"))
    run = open_run(root, config, Reporter())
    asked: Any = parse_sets(sets).get("student", {})
    settings = config.student.of(student).model_copy(update=asked)
    data, origin, began = run.data(), run.origin_of(settings), time.process_time()
    logits = run.folder("targets") / TEACHER_LOGITS
    result = distil(settings, origin, data, logits, work, run.environment, progress=lambda *given, **more: None)
    assert result.training is not None
    seconds, metric = time.process_time() - began, data.task.metrics[0]
    pad_id = loading.load_tokenizer(str(work / "base")).pad_token_id
    answers = predict(merged_student(work), Rows([data.tokens(origin.role, "eval")]), pad_id=pad_id)
    score = compute(answers, np.asarray(data.rows("eval")["label"][:]), data.task.kind, (metric,))[metric]
    return f"{score:.2f}", str(result.training.best_step), str(result.training.steps), f"{seconds:.0f}"


if __name__ == "__main__":
    main()
