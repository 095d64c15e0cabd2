"""Does the cells of a study side by side, as tasks of Ray: on a cluster, or on this machine alone.

One task makes what the cells of a run directory share (data, teacher, targets). When it is done, each of these cells is
a task of its own and takes that as it is. A task only starts and watches the process that does the work, so that a
cell's peak memory is its own here too. A task is begun anew if its worker or its process is killed, not if it fails.
"""

import os
import platform
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdc.common.errors import InputError
from kdc.common.ray import connected
from kdc.tools.study.jobs import Job, Outcome

_TRIES = 4


def side_by_side(
    jobs: Sequence[Job], say: Callable[[str], None], *, address: str | None = None
) -> Generator[Outcome, None, None]:
    """The engine `ray`.

    Args:
        jobs: cells to be done. Each takes a GPU where it may use one, and as many cores as it has threads, or one.
        say: called with a line whenever a job starts, with its machine, or starts again.
        address: of a cluster; None takes the environment's `RAY_ADDRESS`, or runs Ray on this machine alone.

    Yields:
        The outcome of each cell, in the order in which they come.

    Raises:
        InputError: there is no such cluster, or this machine has too few cores or GPUs for a cell.
        KdcError: Ray is not installed.
    """
    if not jobs:
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None and address.startswith("ray://"):
        raise InputError(
            "a study does not run through a Ray client",
            given=f"--address {address}",
            remedy="start it on a node of the cluster, with --address auto",
        )
    groups: dict[Path | None, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.config.run.out, []).append(job.model_copy(update={"threads": job.threads or 1}))
    with connected(address) as ray:
        gpus = ray.cluster_resources().get("GPU", 0)
        resources = resources_of_a_job(jobs[0].config.run.device, jobs[0].threads or 1, gpus)
        _check_room(ray, resources, say, may_grow=address is not None)
        tasks = _Tasks(ray, resources, say)
        try:
            for group in groups.values():
                tasks.add(group[0].model_copy(update={"shared": "only"}))
            for job, outcome in tasks.outcomes():
                group = groups[job.config.run.out]
                if job.shared == "there":
                    yield outcome
                elif outcome.failure:
                    yield from (replace(outcome, cell=one.cell) for one in group)
                else:
                    for one in group:
                        tasks.add(one.model_copy(update={"shared": "there"}))
        finally:
            tasks.cancel()


def resources_of_a_job(device: str, threads: int, cluster_gpus: float) -> dict[str, int]:
    """The cores and GPUs that one job takes of a machine, as Ray names them: with the device "auto" a GPU where the
    cluster has any. All jobs of a study are alike."""
    on_gpu = device == "cuda" or (device == "auto" and cluster_gpus > 0)
    return {"num_cpus": threads, "num_gpus": int(on_gpu)}


def _check_room(ray: Any, resources: dict[str, int], say: Callable[[str], None], *, may_grow: bool) -> None:
    """Check that some machine is large enough for a job: Ray itself would wait for one silently and for ever.

    Raises:
        InputError: no machine is, and none can join.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores, gpus = resources["num_cpus"], resources["num_gpus"]
    if any(node.get("CPU", 0) >= cores and node.get("GPU", 0) >= gpus for node in nodes):
        return
    given = f"a cell takes {cores} cores and {gpus} GPUs"
    if not may_grow:
        raise InputError("this machine has no room for a cell", given=given, remedy="fewer --threads, or --device cpu")
    say(f"no node has room for a cell ({given}): cells wait until one joins")


class _Tasks:
    """The jobs that Ray was given and that are not done yet."""

    def __init__(self, ray: Any, resources: dict[str, int], say: Callable[[str], None]) -> None:
        self._ray = ray
        self._say = say
        # Ray would begin a task anew by itself, but silently, and endlessly where memory runs out.
        self._submit = ray.remote(num_returns="streaming", max_retries=0, **resources)(_work).remote
        self._folder = os.getcwd()
        self._running: dict[Any, tuple[Job, int]] = {}

    def add(self, job: Job, tries: int = 1) -> None:
        self._running[self._submit(job, self._folder)] = job, tries

    def outcomes(self) -> Iterator[tuple[Job, Outcome]]:
        """The outcomes of all jobs as they come, also of jobs that are added meanwhile."""
        while self._running:
            (stream,), _ = self._ray.wait(list(self._running), num_returns=1)
            job, tries = self._running[stream]
            event = self._next(job, stream)
            if isinstance(event, str):
                self._say(f"{job.name}: starts on {event}")
                continue
            del self._running[stream]
            if event.died and tries < _TRIES:
                self._say(f"{job.name}: died ({event.failure}), begins anew")
                self.add(job, tries + 1)
            else:
                yield job, replace(event, failure=f"{event.failure}, {tries} times") if event.died else event

    def _next(self, job: Job, stream: Any) -> str | Outcome:
        """Wait for the next event of a job: the name of the machine where it starts, or its outcome."""
        from ray.exceptions import RayError, RayTaskError

        try:
            return self._ray.get(next(stream))
        except RayTaskError as error:  # raised by our own code, or because kdc is not installed on that machine
            return Outcome(job.cell, None, str(error).strip().splitlines()[-1])
        except RayError as error:
            return Outcome(job.cell, None, f"its worker was lost: {type(error).__name__}", died=True)

    def cancel(self) -> None:
        """End the jobs that still run; their processes end with their workers."""
        for stream in self._running:
            self._ray.cancel(stream, force=True)


def _work(job: Job, folder: str) -> Iterator[str | Outcome]:
    """Do a job in a worker of Ray, in the folder that relative paths of the study start from: the name of the machine
    when it starts, then the outcome."""
    node = platform.node()
    yield node
    try:
        os.chdir(folder)
    except OSError as error:
        yield Outcome(job.cell, None, f"{node} does not see {folder} ({error.strerror}); all nodes need it")
    else:
        yield job.do()
