"""Answers a table in this process (`--engine local`): window after window, each kept, joined to one file at the end.

The output appears whole. Until then its rows lie in `OUTPUT.partial/`, beside the records of `kdc.serving.bulk.job`.
"""

import sys
from collections.abc import Iterator
from contextlib import nullcontext

from kdc.common.errors import InputError
from kdc.common.places import STANDARD, file_system, is_local, lock, whole_file_at
from kdc.serving.bulk.inputs import Window, read_standard_input, read_windows
from kdc.serving.bulk.job import Counts, FinishedWindows, Job, Progress, WindowRecord, record_of
from kdc.serving.bulk.outputs import Writer
from kdc.serving.bulk.windows import Scorer, answer_window
from kdc.serving.engine.engine import Engine


def run(job: Job, engine: Engine, *, progress: Progress) -> Counts:
    """Answer everything; `progress` is called after each window.

    Raises:
        InputError: the input cannot be used, a row is bad and bad rows stop the job, or the output exists.
        KdcError: the model failed, or finished rows are gone.
    """
    writer, output = Writer(job), job.request.output
    if output == STANDARD:
        return _stream(job, engine, writer, progress)
    with lock(output):
        system, path = file_system(output)
        if is_local(system) and system.isdir(path):  # even with --force: it may hold more than kdc has written
            raise InputError("the output is a directory", given=output, remedy="another name, or remove it first")
        finished = FinishedWindows(job, ".rows")
        finished.resume_or_start()
        counts, records = _answer_all(finished, engine, writer, progress)
        finished.check(records)
        finished.name_errors(records)
        with whole_file_at(output) as stream:  # written last: once it exists, the job is done
            writer.join(map(finished.rows, records), stream)
        finished.folder.remove()
    return counts


def windows_of(job: Job) -> Iterator[tuple[Window, int]]:
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
    finished: FinishedWindows, engine: Engine, writer: Writer, progress: Progress
) -> tuple[Counts, dict[str, WindowRecord]]:
    """Answer every window that is not finished. Returns the rows' counts, and the record of each window by its key."""
    counts, scorer = Counts(), Scorer(engine)
    records: dict[str, WindowRecord] = {}
    for number, (window, done) in enumerate(windows_of(finished.job)):
        key = f"{number:09d}"
        writer.check(window)
        record = finished.find(key, window)
        if record is None:
            answered = answer_window(finished.job, scorer, writer, window, columns_seen=counts.written > 0)
            record = finished.add(key, *answered)
        elif writer.needs_types:
            finished.check({key: record})
            writer.learn(finished.rows(key))
        counts = counts.plus(record)
        records[key] = record
        progress(counts, done)
    return counts, records


def _stream(job: Job, engine: Engine, writer: Writer, progress: Progress) -> Counts:
    """Write the answers to standard output as they come. Nothing is kept, so the job cannot go on after a kill."""
    counts, scorer, errors = Counts(), Scorer(engine), job.request.errors
    with nullcontext() if errors is None else whole_file_at(errors) as named:
        for window, done in windows_of(job):
            writer.check(window)
            good, rows = answer_window(job, scorer, writer, window, columns_seen=counts.written > 0)
            sys.stdout.buffer.write(rows)
            sys.stdout.buffer.flush()
            if named is not None:
                named.write(good.error_lines())
            counts = counts.plus(record_of(good, rows))
            progress(counts, done)
    return counts
