"""`kdc predict` for people: checks what was asked, shows how far it is, tells what came of it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from artifact import Device
from contract.text import refuse_failed
from errors import InputError
from scoring.job import Counts, Job
from scoring.local_job import run
from scoring.places import STANDARD, File, file_system, find, format_of, is_packed
from scoring.windows import Columns
from serving.engine import Engine

_LANES = 64  # the engine takes no more than it has threads


def predict_for_people(
    artifact: Path, source: str, output: str, *, text: str | None, text_pair: str | None, prefix: str,
    all_scores: bool, on_error: str, errors: str | None, variant: str | None, device: Device, threads: int | None,
    force: bool, allow_failed: bool,
) -> dict[str, Any]:  # fmt: skip
    """Answer a table.

    Args:
        artifact: folder.
        source: file, directory, pattern or URL; "-" is JSONL on standard input.
        output: file or URL; "-" is JSONL on standard output.
        text, text_pair: columns, if they are named otherwise than the task's.
        prefix: before the names of new columns.
        all_scores: a column for each class.
        on_error: "stop" or "skip", for rows that have no text.
        errors: file that names skipped rows.
        variant, device, threads: as for `Engine.load`.
        force: replace an output, and drop an unfinished job.
        allow_failed: also with an artifact that failed its contract.

    Returns:
        read, written, skipped, resumed (rows), seconds, rows_per_second (of those not resumed), output.

    Raises:
        InputError, KdcError: as `scoring.job.run`.
    """
    if on_error not in ("stop", "skip"):
        raise InputError("no such way to treat a bad row", given=on_error, remedy="stop or skip")
    if errors is not None and on_error != "skip":
        raise InputError("--errors names rows that are skipped", given="--on-error stop", remedy="--on-error skip")
    files = [] if source == STANDARD else find(source)
    kind = "jsonl" if output == STANDARD else format_of(output)
    if is_packed(output):
        raise InputError("the output is not compressed by kdc", given=output, remedy="pack it afterwards, or .parquet")
    _check_apart(files, output, errors)
    if kind == "parquet" or any(file.format == "parquet" for file in files):
        _check_pyarrow()
    engine = Engine.load(artifact, variant=variant, device=device, threads=threads, lanes=_LANES)
    assert engine.manifest is not None
    refuse_failed(engine.manifest.contract, allow=allow_failed)
    columns = _columns(engine, text, text_pair, prefix, all_scores)
    identity = {
        "artifact": engine.manifest.sha256, "variant": engine.variant, "provider": engine.provider
    }  # fmt: skip
    job = Job(files, output, kind, columns, on_error == "skip", errors, identity, force)
    began = time.perf_counter()
    counts = _with_progress(job, engine)
    seconds = time.perf_counter() - began
    return {
        **vars(counts), "seconds": round(seconds, 2),
        "rows_per_second": round((counts.read - counts.resumed) / max(seconds, 1e-9), 1), "output": output,
    }  # fmt: skip


def _columns(engine: Engine, text: str | None, text_pair: str | None, prefix: str, all_scores: bool) -> Columns:
    task = engine.task
    if text_pair is not None and not task.is_pair:
        raise InputError(f"the task {task.name} takes one text a row", given=f"--text-pair {text_pair}")
    if all_scores and task.kind == "regression":
        raise InputError("regression has no classes", given="--all-scores", remedy="leave it out")
    return Columns(text or task.text, (text_pair or task.text_pair) if task.is_pair else None, prefix, all_scores)


def _check_apart(files: list[File], output: str, errors: str | None) -> None:
    """The output is none of the files that are read, nor the file of errors."""
    places = [(file.system, file.path) for file in files]
    places += [file_system(each) for each in (output, errors) if each is not None and each != STANDARD]
    known = [(tuple(system.protocol), str(Path(path).resolve())) for system, path in places]
    if len(set(known)) < len(known):
        raise InputError("input, output and errors are not all different files", given=output, remedy="another name")


def _check_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise InputError(
            "Parquet needs pyarrow", given="it is not installed", remedy="pip install 'kdc[predict]', or use .jsonl"
        ) from None


def _with_progress(job: Job, engine: Engine) -> Counts:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    total = sum(file.size for file in job.files) or None
    where = f"{engine.variant} on {engine.provider}, {engine.threads} threads"
    console.print(f"{engine.task.name}: {where} -> {job.output}", markup=False)
    bar = Progress(
        TextColumn("  {task.fields[rows]:,} rows"), TextColumn("{task.fields[speed]:,.0f} rows/s"), BarColumn(),
        TextColumn("left"), TimeRemainingColumn(), console=console, transient=True,
        disable=not console.is_terminal or (job.output == STANDARD and sys.stdout.isatty()),
    )  # fmt: skip
    speed = Speed()
    with bar:
        task = bar.add_task("rows", total=total, rows=0, speed=0.0)

        def progress(counts: Counts, done: int) -> None:
            bar.update(task, completed=done, rows=counts.read, speed=speed(counts))

        return run(job, engine, progress=progress)


class Speed:
    """Rows a second of those that are answered now: what was done before is only read over, in hardly any time."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def __call__(self, counts: Counts) -> float:
        """The speed so far; 0 while nothing is new."""
        fresh = counts.read - counts.resumed
        if not fresh:
            self._began = time.perf_counter()
            return 0.0
        return fresh / max(time.perf_counter() - self._began, 1e-9)
