"""Training speed: kdc's measured choices against every fixed setting, alone and beside a busy process.

Command: `python benchmarks/training.py --data GLUE_FOLDER [--rounds 3] [--peer PYTHON]`. QNLI, MiniLM teacher and
3-layer student, in turns. Also times torch's dropout, padding to 512 tokens, the Hugging Face Trainer, and
sentence-transformers' cross-encoder (PYTHON has peers/requirements.txt).
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("OMP_NUM_THREADS", None)  # fixes the threads
from transformers import PrinterCallback, TrainerCallback

from benchmarks.neighbour import busy_neighbour

BATCH = 32
PADDED_STEPS, CHOSEN_STEPS = 3, 3  # steps if padded; factor if kdc chooses
TEACHER, STUDENT = "teacher", "student"
_TORCHS = "torch's dropout"
_PEER = "sentence-transformers"


@dataclass(frozen=True)
class Case:
    name: str
    threads: int | None = None  # None: measured
    bf16: bool | None = False  # None: measured, as is attention
    pad_to: int | None = None
    own_dropout: bool = True  # False: torch's, with the checkpoint's rates
    plain: bool = False


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def main() -> None:
    import torch

    from kdc.pipeline.training.environment import pace

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--who", nargs="+", choices=(TEACHER, STUDENT), default=[TEACHER, STUDENT])
    parser.add_argument("--steps", type=int, default=24, help="steps of each setting in a round; one more goes before")
    parser.add_argument("--peer", type=Path, help="Python with peers/requirements.txt: times sentence-transformers too")
    options = parser.parse_args()
    pace()  # counts threads before they change
    most = torch.get_num_threads()
    fixed = [Case(f"{threads} threads", threads) for threads in (most, 1)]
    if _has_bf16():
        fixed += [replace(case, name=f"{case.name}, bf16", bf16=True) for case in fixed]
    peaks = {case.name: _peak(case) for case in fixed}
    print(f"peak, GFLOP/s: {', '.join(f'{peak:.0f} with {name}' for name, peak in peaks.items())}", flush=True)
    others = [
        Case(_TORCHS, most, own_dropout=False),
        Case("the plain Trainer", most, own_dropout=False, plain=True),
        Case("padded to 512", most, pad_to=512),  # not the teacher: its step takes half a minute
    ]
    with tempfile.TemporaryDirectory() as scratch:
        tokens = _rows(options.data, Path(scratch))
        for who in options.who:
            speeds: dict[tuple[str, bool], list[float]] = {}
            for _ in range(options.rounds):
                for beside in (False, True):
                    with busy_neighbour() if beside else contextlib.nullcontext():
                        for case in [
                            Case("chosen", bf16=None),
                            *fixed,
                            *(() if beside else others[: 3 if who == STUDENT else 2]),
                        ]:
                            speed = _speed(tokens, who, case, options.steps)
                            speeds.setdefault((case.name, beside), []).append(speed)
                            where = "beside a busy process" if beside else "alone"
                            print(f"{who}, {where}, {case.name}: {speed:.1f} rows/s", file=sys.stderr, flush=True)
                if options.peer is not None and who == TEACHER:
                    speeds.setdefault((_PEER, False), []).append(
                        _peer_speed(options.peer, Path(scratch), options.steps)
                    )
            _tell(who, speeds, fixed, most, peaks, _flops_of_a_row(who, tokens))


def _tell(
    who: str,
    speeds: dict[tuple[str, bool], list[float]],
    fixed: list[Case],
    most: int,
    peaks: dict[str, float],
    flops: float,
) -> None:
    rates = {key: median(values) for key, values in speeds.items()}
    for (name, beside), rate in rates.items():
        where = "beside a busy process" if beside else "alone"
        each = ", ".join(f"{value:.1f}" for value in speeds[name, beside])
        print(f"{who}, {where:<21} {name:<20} {rate:7.1f} rows/s   ({each})")
    best = max(fixed, key=lambda case: rates[case.name, False])
    alone, shared = rates["chosen", False], rates["chosen", True]
    one = max(rates[case.name, False] for case in fixed if case.threads == 1)
    print(f"{who}: chosen to the best fixed setting, alone ({best.name}): {alone / rates[best.name, False]:.2f}")
    print(f"{who}: chosen beside a busy process to one thread alone: {shared / one:.2f}")
    print(
        f"{who}: {most} threads beside a busy process to one thread alone: {rates[f'{most} threads', True] / one:.2f}"
    )
    ours = "no dropout" if who == STUDENT else "cheap dropout"
    print(f"{who}: {ours} to torch's: {rates[f'{most} threads', False] / rates[_TORCHS, False]:.2f}")
    for name, peak in peaks.items():
        print(f"{who}: {name}, share of its peak: {100 * rates[name, False] * flops / 1e9 / peak:.0f} %")
    share = 100 * alone * flops / 1e9 / max(peaks.values())
    print(f"{who}: chosen, share of the highest peak: {share:.0f} %\n", flush=True)


def _peak(case: Case) -> float:
    import torch

    torch.set_num_threads(case.threads or 1)
    size = 1024
    left, right = (torch.randn(size, size, dtype=torch.bfloat16 if case.bf16 else torch.float32) for _ in range(2))
    times = []
    for _ in range(12):
        began = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times) / 1e9


def _has_bf16() -> bool:
    import torch

    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))


def _flops_of_a_row(who: str, tokens: Any) -> float:
    """FLOPs of a step for a row of mean length. A linear weight takes 2 a token forward, 2 for the input's gradient, 2
    for its own (not with adapters). Attention takes three times 4 * tokens^2 * width a layer.
    """
    import numpy as np

    layers, width, inner = (6 if who == TEACHER else 3), 384, 1536
    length = float(np.mean(tokens["length"][:]))
    weights = layers * (4 * width * width + 2 * width * inner)
    return (6 if who == TEACHER else 4) * weights * length + 12 * layers * length**2 * width


def _rows(data: Path, scratch: Path) -> Any:
    from kdc.pipeline.config.data_settings import DataSettings
    from kdc.pipeline.config.tasks import find_task
    from kdc.pipeline.data.prepared import open_data, prepare
    from kdc.pipeline.data.tokens import tokenise
    from kdc.pipeline.models import loading

    folder = scratch / "data"
    prepare(folder, find_task("qnli"), DataSettings(task="qnli", data=data), seed=0)
    tokenise(folder, "student", loading.load_tokenizer("minilm"), 128)
    return open_data(folder).tokens("student", "train")


def _peer_speed(python: Path, run: Path, steps: int) -> float:
    script = Path(__file__).parent / "peers" / "cross_encoder_trainer.py"
    told = subprocess.run([python, script, run, "--steps", str(steps)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(told.stdout.splitlines()[-1])["rows_per_second"]


def _speed(tokens: Any, who: str, case: Case, steps: int) -> float:
    import numpy as np
    import torch
    from transformers import set_seed

    from kdc.common.pace import Pace
    from kdc.pipeline.config.tasks import find_task
    from kdc.pipeline.config.training_settings import LoraSettings
    from kdc.pipeline.models import loading
    from kdc.pipeline.models.cutting import Cut, cut
    from kdc.pipeline.models.units import first_units
    from kdc.pipeline.training import adapters, dropout, loop
    from kdc.pipeline.training.batches import Rows
    from kdc.pipeline.training.environment import Environment, attention, pace, settle

    steps = PADDED_STEPS if case.pad_to else CHOSEN_STEPS * steps if case.threads is None else steps
    set_seed(0)
    without = who == STUDENT and case.own_dropout  # as in the student's recipe
    pooling: Any = "first" if case.plain else "auto"
    loaded = loading.load_model("minilm", find_task("qnli"), pooling=pooling, dropout=0.0 if without else None)
    model = loaded.model
    if who == STUDENT:
        lora = LoraSettings(dropout=0.0 if without else 0.05)
        model = adapters.with_adapters(cut(model, Cut((0, 1, 2)), first_units), loaded.new_modules, lora)
    logits = np.random.default_rng(0).normal(size=(len(tokens), 2)).astype(np.float32)
    chosen = Pace((case.threads,) if case.threads else pace().choices, torch.set_num_threads)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(loop, "pace", return_value=chosen):
        make = _plain if case.plain else _ours
        environment = Environment(seed=0, bf16=case.bf16)
        if case.threads is None:
            environment = settle(environment, model, Rows([tokens]), pad_id=0)
        trainer = make(model, tokens, logits if who == STUDENT else None, case, steps, Path(folder), environment)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        cheap = dropout.cheap_dropout(model) if case.own_dropout else contextlib.nullcontext()
        with chosen.work(), cheap, attention(environment):
            trainer.train()
    return steps * BATCH / (clock.ends[-1] - clock.ends[0])


def _ours(model: Any, tokens: Any, logits: Any, case: Case, steps: int, folder: Path, environment: Any) -> Any:
    from kdc.pipeline.config.tasks import find_task
    from kdc.pipeline.config.training_settings import TrainSettings
    from kdc.pipeline.training import loop
    from kdc.pipeline.training.batches import Collator, Rows
    from kdc.pipeline.training.callbacks import Paced

    settings = TrainSettings(batch_size=BATCH, learning_rate=1e-4, warmup=0, weight_decay=0)
    plan = loop.Plan(settings, environment, steps=steps + 1, evaluate_every=10**6, pad_to=case.pad_to)
    arguments = loop.training_arguments(plan, folder)
    trainer = loop.DistillationTrainer(
        objective=loop.Objective(find_task("qnli"), alpha=0.0 if logits is None else 0.5, temperature=2.0),
        plan=plan,
        model=model,
        args=replace(arguments, eval_strategy="no", save_strategy="no", load_best_model_at_end=False),
        train_dataset=Rows([tokens], logits),
        data_collator=Collator(0, case.pad_to),
    )
    trainer.add_callback(Paced(trainer))
    return trainer


def _plain(model: Any, tokens: Any, logits: Any, case: Case, steps: int, folder: Path, environment: Any) -> Any:
    """The Trainer as in transformers' course: random order, padded to the batch's longest, labels only."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    from kdc.pipeline.models import loading

    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps + 1,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-4,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = tokens.remove_columns([name for name in ("row", "length") if name in tokens.column_names])
    collator = DataCollatorWithPadding(loading.load_tokenizer("minilm"))
    return Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)


if __name__ == "__main__":
    main()
