"""`kdc predict` for people: checks what was asked, shows how far it is, tells what came of it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdc.artifact.contract.text import refuse_failed
from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import Device, TaskInfo
from kdc.common.errors import InputError
from kdc.common.places import STANDARD, File, file_system, find, format_of, is_packed
from kdc.common.progress import RowCounter
from kdc.common.ray import connected
from kdc.serving.bulk import local_job
from kdc.serving.bulk.job import Counts, Job, Progress
from kdc.serving.bulk.windows import LANES, Columns
from kdc.serving.engine.engine import Engine


def predict_for_people(
    artifact: Path,
    source: str,
    output: str,
    *,
    text: str | None,
    text_pair: str | None,
    prefix: str,
    all_scores: bool,
    on_error: str,
    errors: str | None,
    variant: str | None,
    device: Device,
    threads: int | None,
    force: bool,
    allow_failed: bool,
    engine: str = "local",
    address: str | None = None,
    actors: int | None = None,
) -> dict[str, Any]:
    """Answer a table.

    Args:
        artifact: folder.
        source: file, directory, pattern or URL; "-" is JSONL on standard input.
        output: file or URL; "-" is JSONL on standard output. With Ray a directory of shards.
        text, text_pair: columns, if they are named otherwise than the task's.
        prefix: before the names of new columns.
        all_scores: a column for each class.
        on_error: "stop" or "skip", for rows that have no text.
        errors: file that names skipped rows.
        variant, device, threads: as for `Engine.load`; with Ray, of each actor.
        force: replace an output, and drop an unfinished job.
        allow_failed: also with an artifact that failed its contract.
        engine: "local", in this process; "ray", on a cluster, or on this machine by actors.
        address: of the cluster; None: of the environment's `RAY_ADDRESS`, or Ray on this machine alone.
        actors: of Ray; None takes all that there is.

    Returns:
        read, written, skipped, resumed (rows), seconds, rows_per_second (of those not resumed), output; with Ray also
        actors.

    Raises:
        InputError, KdcError: as `kdc.serving.bulk.local_job.run` and `kdc.serving.bulk.ray_job.run`.
    """
    _check_options(source, output, on_error, errors, engine, address, actors)
    files = [] if source == STANDARD else find(source)
    kind = "jsonl" if output == STANDARD else format_of(output)
    if is_packed(output):
        raise InputError("the output is not compressed by kdc", given=output, remedy="pack it afterwards, or .parquet")
    _check_apart(files, output, errors)
    if kind == "parquet" or any(file.format == "parquet" for file in files):
        _check_pyarrow()

    def job_of(task: TaskInfo, identity: dict[str, str]) -> Job:
        columns = _columns(task, text, text_pair, prefix, all_scores)
        return Job(files, output, kind, columns, on_error == "skip", errors, identity, force)

    how: dict[str, Any] = {"variant": variant, "device": device, "threads": threads, "allow_failed": allow_failed}
    if engine == "ray":
        return _on_ray(artifact, job_of, **how, address=address or os.environ.get("RAY_ADDRESS"), count=actors)
    return _locally(artifact, job_of, **how)


def _locally(
    artifact: Path,
    job_of: Callable[[TaskInfo, dict[str, str]], Job],
    *,
    variant: str | None,
    device: Device,
    threads: int | None,
    allow_failed: bool,
) -> dict[str, Any]:
    engine = Engine.load(artifact, variant=variant, device=device, threads=threads, lanes=LANES)
    assert engine.manifest is not None
    refuse_failed(engine.manifest.contract, allow=allow_failed)
    identity = {"artifact": engine.manifest.sha256, "variant": engine.variant, "provider": engine.provider}
    where = f"{engine.variant} on {engine.provider}, {engine.threads} threads"
    job = job_of(engine.task, identity)
    return _shown(job, engine.task, where, lambda progress: local_job.run(job, engine, progress=progress))


def _on_ray(
    artifact: Path,
    job_of: Callable[[TaskInfo, dict[str, str]], Job],
    *,
    variant: str | None,
    device: Device,
    threads: int | None,
    allow_failed: bool,
    address: str | None,
    count: int | None,
) -> dict[str, Any]:
    from kdc.serving.bulk import ray_cluster, ray_job

    manifest = load_manifest(artifact)
    refuse_failed(manifest.contract, allow=allow_failed)
    with connected(address, (count or 1) * (threads or 1)) as ray:
        actors = ray_cluster.share_out(ray, device, count, threads)
        # Not the same job as a local one: what it keeps lies elsewhere.
        identity = {"engine": "ray", "artifact": manifest.sha256, "variant": variant or "", "provider": actors.device}
        where = f"Ray, {actors.count} actors on {actors.device}, {actors.threads} threads each"
        job = job_of(manifest.task, identity)

        def work(progress: Progress) -> Counts:
            return ray_job.run(ray, job, artifact, manifest, variant=variant, actors=actors, progress=progress)

        return {**_shown(job, manifest.task, where, work), "actors": actors.count}


def _check_options(
    source: str, output: str, on_error: str, errors: str | None, engine: str, address: str | None, actors: int | None
) -> None:
    if on_error not in ("stop", "skip"):
        raise InputError("no such way to treat a bad row", given=on_error, remedy="stop or skip")
    if errors is not None and on_error != "skip":
        raise InputError("--errors names rows that are skipped", given="--on-error stop", remedy="--on-error skip")
    if engine not in ("local", "ray"):
        raise InputError("no such engine", given=engine, remedy="local or ray")
    if engine == "local":
        for name, value in (("--address", address), ("--actors", actors)):
            if value is not None:
                raise InputError(f"{name} is for Ray", given=f"{name} {value}", remedy="add --engine ray")
        return
    if STANDARD in (source, output):
        raise InputError("Ray reads and writes files", given=STANDARD, remedy="name files, or --engine local")
    (before, inside), (other, place) = file_system(source), file_system(output)
    if before.protocol == other.protocol and place.startswith(f"{inside.rstrip('/')}/"):
        raise InputError(
            "the output would lie inside the input", given=f"{output} in {source}", remedy="a place beside the input"
        )


def _columns(task: TaskInfo, text: str | None, text_pair: str | None, prefix: str, all_scores: bool) -> Columns:
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


def _shown(job: Job, task: TaskInfo, where: str, work: Callable[[Progress], Counts]) -> dict[str, Any]:
    """Do the work with a bar. Returns what came of it."""
    total = sum(file.size for file in job.files) or None
    began, speed = time.perf_counter(), Speed()
    with RowCounter(quiet=job.output == STANDARD and sys.stdout.isatty()) as counter:
        counter.say(f"{task.name}: {where} -> {job.output}")
        counter.start(total)
        counts = work(lambda counts, done: counter.update(done, counts.read, speed(counts)))
    seconds = time.perf_counter() - began
    return {
        **vars(counts),
        "seconds": round(seconds, 2),
        "rows_per_second": round((counts.read - counts.resumed) / max(seconds, 1e-9), 1),
        "output": job.output,
    }


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
