"""The paper's tables: a grid of `kdc.compress` calls beside the published figures.

Command: `python benchmarks/study.py --tasks sst2,qnli --families bert,roberta,deberta --seeds 1,2,3 --out study`.
Writes `study.md`, `.csv`, `.tex` and `.json` into `--out`, and resumes. Each cell has its own process, for its own peak
memory. `fft` runs first; the other methods copy its stages.
"""

import argparse
import functools
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import kdc
from benchmarks.study_tables import RANKED, Cell, Figures, Outcome, write_study
from kdc.common import machine
from kdc.common.errors import InputError, KdcError
from kdc.common.files import write_whole
from kdc.common.ray import connected
from kdc.pipeline.config.resolve import parse_sets, resolve
from kdc.pipeline.config.tasks import TASKS
from kdc.pipeline.data.fingerprint import input_fingerprint

Call = dict[str, Any]  # keywords of `kdc.compress`
Result = dict[str, dict[str, Any]] | str  # or why the cell failed
Submit = Callable[..., "Future[Any]"]

METHODS: dict[str, dict[str, Any]] = {
    "fft": {"student.model": "teacher"},
    "lora": {"student.model": "teacher", "teacher.method": "lora"},
    "kd-lora": {},
    "student-lora": {"student.alpha": 0.0},
    "student-fft": {"student.alpha": 0.0, "student.method": "full"},
    "probe": {},
    "tfidf": {},
}
_BASELINES = ("probe", "tfidf")  # made by `fft`
SHARED = ("data", "baselines", "teacher", "targets")
# `fft` is fine-tuning alone; tables mark collapsed models; unneeded stages are off.
ALL_CELLS = {
    "run.recipe": "paper",
    "teacher.from_probe": "off",
    "student.allow_majority": True,
    "export.teacher": False,
    "export.fp16": False,
    "quantize.enabled": False,
    "evaluate.memory": False,
}


@dataclass(frozen=True)
class Grid:
    tasks: Sequence[str]
    families: Sequence[str]
    methods: Sequence[str]
    ranks: Sequence[int]
    seeds: Sequence[int]
    out: Path
    sets: Sequence[str] = ()  # "section.key=value"

    def cells(self) -> list[Cell]:
        return [
            Cell(task, family, method, rank, seed)
            for family in self.families
            for method in self.methods
            for rank in (self.ranks if method in RANKED else (0,))
            for task in self.tasks
            for seed in self.seeds
        ]

    def folder(self, cell: Cell) -> Path:
        rank = f"-r{cell.rank}" if cell.rank else ""
        return self.out.absolute() / "runs" / cell.task / cell.family / f"seed-{cell.seed}" / f"{cell.method}{rank}"

    def file(self, cell: Cell) -> Path:
        return self.folder(cell).with_suffix(".json")

    def call(self, cell: Cell) -> Call:
        """Keywords for `kdc.compress`.

        Raises:
            InputError: a setting is wrong, or the student has no adapters for the method.
        """
        own = {
            "data.task": cell.task,
            "run.family": cell.family,
            "run.seed": cell.seed,
            "run.out": str(self.folder(cell)),
            **METHODS[cell.method],
        }
        if cell.rank:
            own |= {"student.lora.r": cell.rank, "student.lora.alpha": 2 * cell.rank}
        layer = parse_sets([*_as_sets(ALL_CELLS), *self.sets, *_as_sets(own)])
        student = resolve(flags=layer, sets={}, file={}).student
        if cell.method == "lora":
            layer["teacher"]["lora"] = student.lora.model_dump(mode="json")
        elif cell.rank and student.method != "lora":
            raise InputError("this student has no adapters to train", given=f"{cell.method}, {student.model}")
        return layer


def _as_sets(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]


_fingerprint = functools.cache(input_fingerprint)


def _key(call: Call) -> dict[str, Any]:
    config = resolve(flags=call, sets={}, file={})
    elsewhere: Any = {"run": {"out", "device"}, "data": {"data"}}
    return {"settings": config.model_dump(mode="json", exclude=elsewhere), "rows": _fingerprint(config.data)}


def copy_stages(source: Path, target: Path, stages: Sequence[str]) -> None:
    """Copies finished stages. `kdc.compress` reuses them if rows and settings match."""
    for stage in stages:
        if (source / stage).exists() and not (target / stage).exists():
            shutil.copytree(source / stage, target / f"{stage}.copy", dirs_exist_ok=True)
            (target / f"{stage}.copy").rename(target / stage)


def measure(call: Call, method: str, teacher: str | None) -> dict[str, dict[str, Any]]:
    """Run one cell in the pool.

    Args:
        teacher: run directory with shared stages, if any.

    Returns:
        Fields of `Figures` by method; for `fft` also of baselines.

    Raises:
        KdcError: as `kdc.compress`.
    """
    if teacher is not None:
        copy_stages(Path(teacher), Path(call["run"]["out"]), SHARED)
    stages = kdc.compress(until="evaluate", **call).stages
    table, task = stages["evaluate"].metrics["table"], call["data"]["task"]
    stage, row = ("teacher", "teacher") if method in ("fft", "lora") else ("student", "merged")
    figures = {method: figures_of(task, table[row], stages[stage].metrics, stages[stage].peak_memory_bytes)}
    if method == "fft":
        figures |= {name: figures_of(task, table[name], {}) for name in _BASELINES if name in table}
    return figures


def figures_of(
    task: str, row: Mapping[str, Any], training: Mapping[str, Any], peak_memory_bytes: int | None = None
) -> dict[str, Any]:
    """Fields of `Figures`. `peak_memory_bytes` serves trainings without a CUDA peak."""
    metrics, rows_per_second = TASKS[task].metrics, row.get("rows_per_second")
    return {
        "scores": {name: value for name, value in row.items() if name.removesuffix("_mismatched") in metrics},
        "collapsed": training.get("constant", False),
        "inference_s_per_1000_rows": None if rows_per_second is None else 1000 / rows_per_second,
        "seconds": training.get("seconds"),
        "parameters": row.get("parameters"),
        "trainable_parameters": training.get("trainable_parameters"),
        "peak_memory_bytes": training.get("peak_memory_bytes") or peak_memory_bytes,
    }


def run_study(grid: Grid, submit: Submit, say: Callable[[str], object]) -> list[Outcome]:
    """Run missing cells, teachers first. A failed cell is retried at the next start.

    Raises:
        InputError: a setting is wrong; nothing was trained.
    """
    cells = grid.cells()
    for cell in cells:
        grid.call(cell)
    results = _do(grid, dict.fromkeys(cell.teacher for cell in cells), submit, say)
    rest = [cell for cell in cells if cell.method not in ("fft", *_BASELINES)]
    results |= _do(grid, [cell for cell in rest if isinstance(results[cell.teacher], dict)], submit, say)
    outcomes = []
    for cell in cells:
        result = results.get(cell, results[cell.teacher])
        if isinstance(result, str):
            outcomes.append(Outcome(cell, None, result))
        elif cell.method in result:
            outcomes.append(Outcome(cell, Figures(**result[cell.method])))
        else:
            outcomes.append(Outcome(cell, None, "the run has no such baseline"))
    return outcomes


def _do(grid: Grid, cells: Iterable[Cell], submit: Submit, say: Callable[[str], object]) -> dict[Cell, Result]:
    results: dict[Cell, Result] = {}
    futures = {}
    for cell in cells:
        call, file = grid.call(cell), grid.file(cell)
        key = _key(call)
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if kept.get("key") == key:
            results[cell] = kept["figures"]
        else:
            teacher = None if cell == cell.teacher else str(grid.folder(cell.teacher))
            futures[submit(measure, call, cell.method, teacher)] = cell, key
    for future in as_completed(futures):
        cell, key = futures[future]
        error = future.exception()
        if error is None:
            results[cell] = future.result()
            _keep(grid, cell, {"key": key, "figures": future.result()})
        else:  # Ray's error has kdc's as its cause
            results[cell] = str(getattr(error, "cause", None) or error) or type(error).__name__
        say(f"{cell.name}: {'done' if error is None else results[cell]}")
    return results


def _keep(grid: Grid, cell: Cell, result: dict[str, Any]) -> None:
    write_whole(grid.file(cell), json.dumps(result, indent=2))
    for folder in grid.folder(cell).iterdir():
        if folder.is_dir() and not (cell == cell.teacher and folder.name in SHARED):
            shutil.rmtree(folder)


@contextmanager
def local_pool(workers: int) -> Iterator[Submit]:
    """A killed process affects no other cell."""
    with ThreadPoolExecutor(workers) as threads:
        try:
            yield lambda *given: threads.submit(in_own_process, *given)
        finally:
            threads.shutdown(cancel_futures=True)


def in_own_process(function: Callable[..., Any], *given: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *given).result()


@contextmanager
def ray_pool(address: str | None, threads: int, device: str) -> Iterator[Submit]:
    """Tasks of Ray, each with a process, `threads` cores, and a GPU if allowed and available."""
    with connected(address, cores=threads) as ray:
        gpus = int(device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0)
        # Ray would retry without end if memory runs out.
        options = {"num_cpus": threads, "num_gpus": gpus, "max_calls": 1, "max_retries": 0}
        yield lambda function, *given: ray.remote(**options)(function).remote(*given).future()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=_names, required=True, help=f"separated by commas: {', '.join(TASKS)}")
    parser.add_argument("--families", type=_names, default="bert,roberta,deberta")
    parser.add_argument("--methods", type=_names, default=",".join(METHODS))
    parser.add_argument("--ranks", type=_numbers, default="8", help="of LoRA, separated by commas; alpha is twice each")
    parser.add_argument("--seeds", type=_numbers, default="1,2,3")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder with GLUE's TSV files (default: the hub)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--set", action="append", default=[], help="a setting of every cell: section.key=value")
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--workers", type=int, default=1, help="cells at a time with --engine local")
    parser.add_argument("--threads", type=int, help="of a cell; with --engine ray also its cores (default there: 1)")
    parser.add_argument("--address", help="of the Ray cluster, or auto (default: Ray on this machine alone)")
    options = parser.parse_args()
    for name, known in (("tasks", TASKS), ("methods", METHODS)):
        if unknown := [each for each in getattr(options, name) if each not in known]:
            parser.error(f"no such {name}: {', '.join(unknown)}; there are {', '.join(known)}")
    return options


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.split(",")))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(map(int, text.split(","))))


def main() -> None:
    options = _options()
    lists = {name: getattr(options, name) for name in ("tasks", "families", "methods", "ranks", "seeds")}
    own = {"run.device": options.device} | ({"data.data": str(options.data.absolute())} if options.data else {})
    grid = Grid(**lists, out=options.out, sets=(*_as_sets(own), *options.set))
    if options.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    ray = options.engine == "ray"
    pool = ray_pool(options.address, options.threads or 1, options.device) if ray else local_pool(options.workers)
    try:
        with pool as submit:
            outcomes = run_study(grid, submit, lambda line: sys.stderr.write(f"{line}\n"))
    except KdcError as error:
        sys.exit(f"error: {error}")
    parts = [machine.cpu().model, f"{machine.cores().usable} cores", *machine.nvidia().devices]
    origin = {"command": shlex.join(["python", *sys.argv]), "machine": ", ".join(parts)}
    sys.stdout.write(write_study(options.out, outcomes, origin))
    if failed := [outcome.cell.name for outcome in outcomes if outcome.failure]:
        sys.exit(f"some cells failed, the same command tries them again: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
