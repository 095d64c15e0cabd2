"""Answers a table in this process (`--engine local`): window after window, each kept, joined to one file at the end.

The output appears whole. Until then its rows lie in `OUTPUT.partial/`, beside the records of `kdc.serving.bulk.job`.
"""

import sys
from collections.abc import Iterator
from contextlib import nullcontext

from kdc.common.errors import InputError
from kdc.common.places import STANDARD, Folder, file_system, is_local, whole_file_at
from kdc.serving.bulk.inputs import Window, read_standard_input, read_windows
from kdc.serving.bulk.job import (
    JOB,
    Counts,
    FinishedWindows,
    Job,
    Progress,
    WindowRecord,
    answer_window,
    error_lines,
    lock,
    record_of,
    resume_or_start,
)
from kdc.serving.bulk.outputs import Writer
from kdc.serving.bulk.windows import Scorer
from kdc.serving.engine.engine import Engine


def run(job: Job, engine: Engine, *, progress: Progress | None = None) -> Counts:
    """Answer everything.

    Args:
        job: what to answer.
        engine: the model.
        progress: called after each window.

    Raises:
        InputError: the input cannot be used, a row is bad and bad rows stop the job, or the output exists.
        KdcError: the model failed, or finished rows are gone.
    """
    writer = Writer(job.kind, job.columns.added(engine.task))
    if job.output == STANDARD:
        return _stream(job, engine, writer, progress)
    folder = Folder(f"{job.output}.partial", first=JOB)
    with lock(job):
        system, path = file_system(job.output)
        if is_local(system) and system.isdir(path):  # even with --force: it may hold more than kdc has written
            raise InputError("the output is a directory", given=job.output, remedy="another name, or remove it first")
        resume_or_start(job, folder)
        finished = FinishedWindows(folder, folder, ".rows")
        counts, records = _answer_all(job, engine, writer, finished, progress)
        if job.errors is not None:
            bad = (_key(number) for number, record in enumerate(records) if record.skipped)
            finished.name_errors(job.errors, bad)
        with whole_file_at(job.output) as stream:  # written last: once it exists, the job is done
            writer.join((finished.rows(_key(number), record.bytes) for number, record in enumerate(records)), stream)
        folder.remove()
    return counts


def _windows(job: Job) -> Iterator[tuple[Window, int]]:
    """All windows, each with the bytes of the input that have been read by its end."""
    if not job.files:
        for window in read_standard_input():
            yield window, 0
    before = 0
    for file in job.files:
        for window in read_windows(file):
            yield window, before + window.done
        before += file.size


def _answer_all(
    job: Job, engine: Engine, writer: Writer, finished: FinishedWindows, progress: Progress | None
) -> tuple[Counts, list[WindowRecord]]:
    """Answer every window that is not finished. Returns the rows' counts, and the record of each window."""
    counts, records, scorer = Counts(), [], Scorer(engine)
    for number, (window, done) in enumerate(_windows(job)):
        writer.check(window)
        record = finished.find(_key(number), window, job)
        resumed = record is not None
        if record is None:
            good, rows = answer_window(job, engine, scorer, writer, window, columns_seen=counts.written > 0)
            record = finished.add(_key(number), good, rows)
        elif writer.needs_types:
            writer.learn(finished.rows(_key(number), record.bytes))
        counts = counts.plus(record, resumed=resumed)
        records.append(record)
        if progress is not None:
            progress(counts, done)
    return counts, records


def _stream(job: Job, engine: Engine, writer: Writer, progress: Progress | None) -> Counts:
    """Write the answers to standard output as they come. Nothing is kept, so the job cannot go on after a kill."""
    counts, scorer = Counts(), Scorer(engine)
    with whole_file_at(job.errors) if job.errors is not None else nullcontext() as errors:
        for window, done in _windows(job):
            writer.check(window)
            good, rows = answer_window(job, engine, scorer, writer, window, columns_seen=counts.written > 0)
            sys.stdout.buffer.write(rows)
            sys.stdout.buffer.flush()
            if errors is not None:
                errors.write(error_lines(good))
            counts = counts.plus(record_of(good, rows))
            if progress is not None:
                progress(counts, done)
    return counts


def _key(number: int) -> str:
    return f"{number:09d}"
