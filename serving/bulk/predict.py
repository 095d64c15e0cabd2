import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from kdc.artifact.contract.text import refuse_failed
from kdc.artifact.folder import load_manifest
from kdc.common.errors import InputError, without_secrets
from kdc.common.places import STANDARD, File, file_system, is_local, lock, whole_file_at
from kdc.common.progress import Meter
from kdc.common.ray import connected
from kdc.serving.bulk.inputs import read_all
from kdc.serving.bulk.job import Counts, FinishedWindows, Job, Progress, WindowRecord, record_of
from kdc.serving.bulk.outputs import Writer
from kdc.serving.bulk.request import PredictRequest
from kdc.serving.bulk.windows import LANES, Scorer, answer_window, split_bad
from kdc.serving.engine.engine import Engine


class PredictResult(Counts):
    seconds: float
    rows_per_second: float  # without resumed rows
    output: str
    actors: int | None = None  # None without Ray

    @property
    def summary(self) -> str:
        resumed = f", {self.resumed:,} of them before" if self.resumed else ""
        skipped = f", {self.skipped:,} skipped" if self.skipped else ""
        speed = f"{self.seconds:.1f} s, {self.rows_per_second:,.0f} rows/s"
        return f"{self.read:,} rows read{resumed}, {self.written:,} written{skipped}: {speed}"

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return self.model_dump(mode="json", exclude_none=True)


def predict(request: PredictRequest) -> PredictResult:
    files = request.check()
    return _on_ray(request, files) if request.engine == "ray" else _locally(request, files)


def _on_ray(request: PredictRequest, files: list[File]) -> PredictResult:
    from kdc.serving.bulk import ray_job

    manifest = load_manifest(request.artifact)
    refuse_failed(manifest.contract, allow=request.allow_failed)
    address = request.address or os.environ.get("RAY_ADDRESS")  # None: on this machine
    with connected(address, (request.actors or 1) * (request.threads or 1)) as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        actors = ray_job.share_out(nodes, request.device, request.actors, request.threads)
        # A local job keeps its rows elsewhere.
        chosen = {"variant": request.variant or "", "provider": actors.device}
        job = Job(request, files, manifest.task, {"engine": "ray", "artifact": manifest.sha256, **chosen})
        where = f"Ray, {actors.count} actors on {actors.device}, {actors.threads} threads each"
        result = _watched(job, where, lambda progress: ray_job.run(ray, job, manifest, actors, progress=progress))
    return result.model_copy(update={"actors": actors.count})


def _locally(request: PredictRequest, files: list[File]) -> PredictResult:
    engine = Engine.load(
        request.artifact, variant=request.variant, device=request.device, threads=request.threads, lanes=LANES
    )
    assert engine.manifest is not None
    refuse_failed(engine.manifest.contract, allow=request.allow_failed)
    identity = {"artifact": engine.manifest.sha256, "variant": engine.variant, "provider": engine.provider}
    job, scorer = Job(request, files, engine.task, identity), Scorer(engine)
    where = f"{engine.variant} on {engine.provider}, {engine.threads} threads"
    answer = _into_standard_output if request.output == STANDARD else _into_file
    return _watched(job, where, lambda progress: answer(job, scorer, progress))


def _watched(job: Job, where: str, work: Callable[[Progress], Counts]) -> PredictResult:
    output, began, speed = without_secrets(job.request.output), time.perf_counter(), Speed()
    # No bar among answers on a terminal.
    with Meter(draws=job.request.output != STANDARD or not sys.stdout.isatty()) as counter:
        counter.say(f"{job.task.name}: {where} -> {output}")
        counter.start("rows", sum(file.size for file in job.files) or None)
        counts = work(lambda counts, done: counter.update(done, counts.read, speed(counts)))
    seconds = time.perf_counter() - began
    return PredictResult(
        **vars(counts),
        seconds=round(seconds, 2),
        rows_per_second=round((counts.read - counts.resumed) / max(seconds, 1e-9), 1),
        output=output,
    )


class Speed:
    """Rows a second. Resumed rows are only read, and do not count."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def __call__(self, counts: Counts) -> float:
        answered = counts.read - counts.resumed
        if not answered:
            self._began = time.perf_counter()
            return 0.0
        return answered / max(time.perf_counter() - self._began, 1e-9)


def _into_file(job: Job, scorer: Scorer, progress: Progress) -> Counts:
    writer, output = Writer(job), job.request.output
    with lock(output):
        system, path = file_system(output)
        if is_local(system) and system.isdir(path):  # other files may be inside
            raise InputError("the output is a directory", given=output, remedy="another name, or remove it first")
        finished, counts = FinishedWindows(job, ".rows"), Counts()
        finished.resume_or_start()
        records: dict[str, WindowRecord] = {}
        for number, (window, done) in enumerate(read_all(job.files)):
            key, columns_seen = f"{number:09d}", counts.written > 0
            writer.check(window)
            record = finished.find(key, window)
            if record is None:
                record = finished.add(key, *answer_window(scorer, writer, window, columns_seen=columns_seen))
            elif writer.needs_types:
                writer.begin_with(split_bad(window, job, columns_seen=columns_seen)[0])
            counts, records[key] = counts.plus(record), record
            progress(counts, done)
        finished.conclude(records)
        with whole_file_at(output) as stream:  # ends the job
            writer.join(map(finished.rows, records), stream)
        finished.folder.remove()
    return counts


def _into_standard_output(job: Job, scorer: Scorer, progress: Progress) -> Counts:
    writer, counts, errors = Writer(job), Counts(), job.request.errors
    with nullcontext() if errors is None else whole_file_at(errors) as named:
        for window, done in read_all(job.files):
            writer.check(window)
            good, rows = answer_window(scorer, writer, window, columns_seen=counts.written > 0)
            sys.stdout.buffer.write(rows)
            sys.stdout.buffer.flush()
            if named is not None:
                named.write(good.error_lines())
            counts = counts.plus(record_of(good, rows))
            progress(counts, done)
    return counts
