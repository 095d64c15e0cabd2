"""Rows a second of student training: grouped by length and padded to the longest of a batch, against padded to 512; and
the former in bf16 autocast.

Command: `python benchmarks/training.py --data GLUE_FOLDER [--rounds 3]`. QNLI rows, the 3-layer MiniLM student with
the adapters of recipe `best` and distillation, in one process, in turns; prints medians and ratios. The same trainer
does all: only padding and order, or the precision, differ. bf16 pays on CPUs that multiply it (`run.precision=auto`).
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
from transformers import TrainerCallback

PADDED_STEPS, GROUPED_STEPS, BATCH = 3, 40, 32  # timed; one more goes before


class _Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def main() -> None:
    """Time both in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = _rows(options.data, Path(scratch))
        speeds: dict[str, list[float]] = {"grouped": [], "padded to 512": [], "grouped, bf16": []}
        for _ in range(options.rounds):
            speeds["grouped"].append(_speed(rows, GROUPED_STEPS, pad_to=None))
            speeds["padded to 512"].append(_speed(rows, PADDED_STEPS, pad_to=512))
            speeds["grouped, bf16"].append(_speed(rows, GROUPED_STEPS, pad_to=None, bf16=True))
    for name, values in speeds.items():
        print(f"{name:>22}: {median(values):8.2f} rows/s   ({', '.join(f'{value:.2f}' for value in values)})")
    grouped, padded, bf16 = (median(values) for values in speeds.values())
    print(f"{'grouped to padded':>22}: {grouped / padded:8.1f}")
    print(f"{'bf16 to fp32, grouped':>22}: {bf16 / grouped:8.2f}")


def _rows(data: Path, scratch: Path) -> Any:
    """QNLI's training rows, tokenised by the pipeline itself."""
    from kdc.pipeline.config.settings import DataSettings
    from kdc.pipeline.config.tasks import find_task
    from kdc.pipeline.data.prepared import open_data, prepare
    from kdc.pipeline.data.tokens import tokenise
    from kdc.pipeline.models import loading

    prepare(scratch, find_task("qnli"), DataSettings(task="qnli", data=data), seed=0)
    tokenise(scratch, "student", loading.load_tokenizer("minilm"), 128)
    return open_data(scratch).tokens("student", "train")


def _speed(tokens: Any, steps: int, *, pad_to: int | None, bf16: bool = False) -> float:
    """Rows a second of a few steps, loading and the first step left out."""
    import numpy as np
    from transformers import set_seed

    from kdc.pipeline.config.settings import LoraSettings, TrainSettings
    from kdc.pipeline.config.tasks import find_task
    from kdc.pipeline.models import loading
    from kdc.pipeline.training import adapters
    from kdc.pipeline.training.batches import Collator, Rows
    from kdc.pipeline.training.loop import DistillationTrainer, Environment, Objective, Plan, training_arguments

    set_seed(0)
    loaded = loading.load_model("minilm", find_task("qnli"))
    student = loading.cut(loaded.model, [0, 1, 2])
    adapted = adapters.with_adapters(student, loaded.new_modules, LoraSettings())
    logits = np.random.default_rng(0).normal(size=(len(tokens), 2)).astype(np.float32)
    settings = TrainSettings(batch_size=BATCH, learning_rate=1e-4, warmup=0, weight_decay=0)
    plan = Plan(settings, Environment(seed=0, bf16=bf16), steps=steps + 1, evaluate_every=10**6, pad_to=pad_to)
    with tempfile.TemporaryDirectory() as folder:
        rows = Rows([tokens], logits)
        trainer = DistillationTrainer(
            objective=Objective(find_task("qnli"), alpha=0.5, temperature=2.0),
            plan=plan,
            model=adapted,
            args=replace(
                training_arguments(plan, Path(folder)),
                eval_strategy="no",
                save_strategy="no",
                load_best_model_at_end=False,
            ),
            train_dataset=rows,
            data_collator=Collator(0, pad_to),
        )
        clock = _Clock()
        trainer.add_callback(clock)
        trainer.train()
        return steps * BATCH / (clock.ends[-1] - clock.ends[0])


if __name__ == "__main__":
    main()
