"""`kdc predict`: answers a table, shows on standard error how far it is, and returns what came of it."""

import sys
import time
from collections.abc import Callable

from kdc.artifact.contract.text import refuse_failed
from kdc.artifact.folder import load_manifest
from kdc.common.places import STANDARD, File
from kdc.common.progress import RowCounter
from kdc.common.ray import connected
from kdc.serving.bulk import local_job
from kdc.serving.bulk.job import Counts, Job, Progress
from kdc.serving.bulk.request import PredictRequest, PredictResult
from kdc.serving.bulk.windows import LANES
from kdc.serving.engine.engine import Engine


def predict(request: PredictRequest) -> PredictResult:
    """Answer a table.

    Raises:
        InputError: an option, the input or the output cannot be used, or a row is bad and bad rows stop the job.
        KdcError: the model or a worker failed, or finished rows are gone.
    """
    files = request.check()
    return _on_ray(request, files) if request.engine == "ray" else _locally(request, files)


def _locally(request: PredictRequest, files: list[File]) -> PredictResult:
    engine = Engine.load(
        request.artifact, variant=request.variant, device=request.device, threads=request.threads, lanes=LANES
    )
    assert engine.manifest is not None
    refuse_failed(engine.manifest.contract, allow=request.allow_failed)
    identity = {"artifact": engine.manifest.sha256, "variant": engine.variant, "provider": engine.provider}
    job = request.job(files, engine.task, identity)
    title = f"{engine.task.name}: {engine.variant} on {engine.provider}, {engine.threads} threads -> {job.output}"
    return _watched(job, title, lambda progress: local_job.run(job, engine, progress=progress))


def _on_ray(request: PredictRequest, files: list[File]) -> PredictResult:
    from kdc.serving.bulk import ray_job

    manifest = load_manifest(request.artifact)
    refuse_failed(manifest.contract, allow=request.allow_failed)
    with connected(request.ray_address, (request.actors or 1) * (request.threads or 1)) as ray:
        actors = ray_job.share_out(ray_job.resources(ray), request.device, request.actors, request.threads)
        # "engine" makes it another job than a local one, whose finished rows lie elsewhere.
        variant = request.variant or ""
        identity = {"engine": "ray", "artifact": manifest.sha256, "variant": variant, "provider": actors.device}
        job = request.job(files, manifest.task, identity)
        where = f"Ray, {actors.count} actors on {actors.device}, {actors.threads} threads each"

        def work(progress: Progress) -> Counts:
            model = ray_job.read_model(request.artifact, manifest, request.variant)
            return ray_job.run(ray, job, model, manifest.task, actors, progress=progress)

        result = _watched(job, f"{manifest.task.name}: {where} -> {job.output}", work)
    return result.model_copy(update={"actors": actors.count})


def _watched(job: Job, title: str, work: Callable[[Progress], Counts]) -> PredictResult:
    """Do the work with a progress bar."""
    total = sum(file.size for file in job.files) or None
    began, speed = time.perf_counter(), Speed()
    with RowCounter(quiet=job.output == STANDARD and sys.stdout.isatty()) as counter:
        counter.say(title)
        counter.start(total)
        counts = work(lambda counts, done: counter.update(done, counts.read, speed(counts)))
    seconds = time.perf_counter() - began
    return PredictResult(
        **vars(counts),
        seconds=round(seconds, 2),
        rows_per_second=round((counts.read - counts.resumed) / max(seconds, 1e-9), 1),
        output=job.output,
    )


class Speed:
    """Rows a second of those that are answered now. Resumed rows do not count: they are only read, which is fast."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def __call__(self, counts: Counts) -> float:
        """The speed so far; 0 until a row is answered."""
        answered = counts.read - counts.resumed
        if not answered:
            self._began = time.perf_counter()
            return 0.0
        return answered / max(time.perf_counter() - self._began, 1e-9)
