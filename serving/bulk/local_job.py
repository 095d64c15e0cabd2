"""Bulk scoring in this process (`--engine local`): window after window, each kept, joined to one file at the end.

The output appears whole: until then its rows lie in `OUTPUT.partial/`, beside the records of `kdc.serving.bulk.job`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext

from kdc.common.errors import InputError
from kdc.common.places import STANDARD, Folder, file_system, is_local, whole_file_at
from kdc.serving.bulk.inputs import Window, read_standard_input, read_windows
from kdc.serving.bulk.job import JOB, Counts, Job, Kept, Progress, answered, begin, error_lines, lock
from kdc.serving.bulk.outputs import Writer
from kdc.serving.bulk.windows import Scorer
from kdc.serving.engine.engine import Engine


def run(job: Job, engine: Engine, *, progress: Progress | None = None) -> Counts:
    """Answer everything.

    Args:
        job: what.
        engine: with whose model.
        progress: called with the rows' counts and the bytes of the input that are done, after each window.

    Raises:
        InputError: the input cannot be used, a bad row where those stop the job, or an output that is there.
        KdcError: the model failed, or what was finished is gone.
    """
    writer = Writer(job.kind, job.columns.added(engine.task))
    if job.output == STANDARD:
        return _stream(job, engine, writer, progress)
    folder = Folder(f"{job.output}.partial", first=JOB)
    with lock(job):
        _check_no_directory(job.output)
        begin(job, folder)
        kept = Kept(folder, folder, ".rows")
        counts, records = _answer_all(job, engine, writer, kept, progress)
        _finish(job, writer, kept, records)
        folder.remove()
    return counts


def _check_no_directory(output: str) -> None:
    """A file takes the place of a file, with --force; a directory may hold more than kdc has written."""
    system, path = file_system(output)
    if is_local(system) and system.isdir(path):
        raise InputError("the output is a directory", given=output, remedy="another name, or remove it first")


def _windows(job: Job) -> Iterator[tuple[Window, int]]:
    """All windows, each with the bytes of the input that were read with it."""
    if not job.files:
        for window in read_standard_input():
            yield window, 0
    before = 0
    for file in job.files:
        for window in read_windows(file):
            yield window, before + window.done
        before += file.size


def _answer_all(
    job: Job, engine: Engine, writer: Writer, kept: Kept, progress: Progress | None
) -> tuple[Counts, list[dict[str, int]]]:
    """Have a piece for every window. Returns the rows' counts, and each window's record."""
    counts, records, scorer = Counts(), [], Scorer(engine)
    for number, (window, done) in enumerate(_windows(job)):
        writer.check(window)
        record = kept.find(_key(number), window, job)
        before = record is not None
        if record is None:
            good, piece = answered(job, engine, scorer, writer, window, known=counts.written > 0)
            record = kept.add(_key(number), good, piece)
        elif writer.needs_types:
            writer.learn(kept.rows(_key(number), record["bytes"]))
        counts.add(record, resumed=before)
        records.append(record)
        if progress is not None:
            progress(counts, done)
    return counts, records


def _finish(job: Job, writer: Writer, kept: Kept, records: list[dict[str, int]]) -> None:
    """Name the bad rows, and join the pieces. The output comes last: where it is, the job is done."""
    if job.errors is not None:
        kept.name_errors(job.errors, (_key(number) for number, record in enumerate(records) if record["skipped"]))
    with whole_file_at(job.output) as stream:
        writer.join((kept.rows(_key(number), record["bytes"]) for number, record in enumerate(records)), stream)


def _stream(job: Job, engine: Engine, writer: Writer, progress: Progress | None) -> Counts:
    """Everything to standard output as it comes; nothing is kept to go on from."""
    counts, scorer = Counts(), Scorer(engine)
    with whole_file_at(job.errors) if job.errors is not None else nullcontext() as errors:
        for window, done in _windows(job):
            writer.check(window)
            good, piece = answered(job, engine, scorer, writer, window, known=counts.written > 0)
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            if errors is not None:
                errors.write(error_lines(good))
            counts.add({"read": len(window), "written": len(good.lines), "skipped": len(good.bad)})
            if progress is not None:
                progress(counts, done)
    return counts


def _key(number: int) -> str:
    return f"{number:09d}"
