"""`kdc predict`: answers a table, shows on standard error how far it is, and returns what came of it."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from kdc.artifact.contract.text import refuse_failed
from kdc.artifact.folder import load_manifest
from kdc.common.errors import without_secrets
from kdc.common.places import STANDARD, File
from kdc.common.progress import RowCounter
from kdc.common.ray import connected
from kdc.serving.bulk import local_job
from kdc.serving.bulk.job import Counts, Job, Progress
from kdc.serving.bulk.request import PredictRequest
from kdc.serving.bulk.windows import LANES
from kdc.serving.engine.engine import Engine


class PredictResult(Counts):
    """The counts of a finished job: `read` is all rows of the input, `written` all rows of the output."""

    seconds: float  # that the job took
    rows_per_second: float  # at the rows that were answered now, not resumed
    output: str  # where the answers are
    actors: int | None = None  # number of Ray's actors; None for the local engine

    @property
    def summary(self) -> str:
        """One line for the person who watches."""
        resumed = f", {self.resumed:,} of them before" if self.resumed else ""
        skipped = f", {self.skipped:,} skipped" if self.skipped else ""
        speed = f"{self.seconds:.1f} s, {self.rows_per_second:,.0f} rows/s"
        return f"{self.read:,} rows read{resumed}, {self.written:,} written{skipped}: {speed}"

    def to_json(self) -> dict[str, Any]:
        """For `--json`: `actors` only with Ray."""
        return self.model_dump(mode="json", exclude_none=True)


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
    job = Job(request, files, engine.task, identity)
    where = f"{engine.variant} on {engine.provider}, {engine.threads} threads"
    return _watched(job, where, lambda progress: local_job.run(job, engine, progress=progress))


def _on_ray(request: PredictRequest, files: list[File]) -> PredictResult:
    from kdc.serving.bulk import ray_job

    manifest = load_manifest(request.artifact)
    refuse_failed(manifest.contract, allow=request.allow_failed)
    address = request.address or os.environ.get("RAY_ADDRESS")  # None is Ray on this machine alone
    with connected(address, (request.actors or 1) * (request.threads or 1)) as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        actors = ray_job.share_out(nodes, request.device, request.actors, request.threads)
        # "engine" makes it another job than a local one, whose finished rows lie elsewhere.
        chosen = {"variant": request.variant or "", "provider": actors.device}
        job = Job(request, files, manifest.task, {"engine": "ray", "artifact": manifest.sha256, **chosen})
        where = f"Ray, {actors.count} actors on {actors.device}, {actors.threads} threads each"
        result = _watched(job, where, lambda progress: ray_job.run(ray, job, manifest, actors, progress=progress))
    return result.model_copy(update={"actors": actors.count})


def _watched(job: Job, where: str, work: Callable[[Progress], Counts]) -> PredictResult:
    """Do the work with a progress bar; `where` says what does it."""
    total, output = sum(file.size for file in job.files) or None, without_secrets(job.request.output)
    began, speed = time.perf_counter(), Speed()
    # On a terminal that shows the answers there is no bar.
    with RowCounter(draws=job.request.output != STANDARD or not sys.stdout.isatty()) as counter:
        counter.say(f"{job.task.name}: {where} -> {output}")
        counter.start(total)
        counts = work(lambda counts, done: counter.update(done, counts.read, speed(counts)))
    seconds = time.perf_counter() - began
    return PredictResult(
        **vars(counts),
        seconds=round(seconds, 2),
        rows_per_second=round((counts.read - counts.resumed) / max(seconds, 1e-9), 1),
        output=output,
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
