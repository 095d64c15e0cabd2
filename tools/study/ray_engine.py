"""Does a study's cells side by side, as tasks of Ray: on a cluster, or on this machine alone.

What the cells of a run directory share (data, teacher, targets) is one task; theirs follow when it is done, and take it
as it is. A task only starts and watches the process that does the work, so that a cell's peak memory is its own here
too. A task whose worker or process is killed is begun anew; one that fails is not.
"""

from __future__ import annotations

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
        jobs: cells to be done; each takes a GPU where it may use one, and its threads in cores, or one core.
        say: told what starts, where, and what starts again.
        address: of a cluster; None: of the environment's `RAY_ADDRESS`, or Ray on this machine alone.

    Yields:
        outcomes, in the order in which they come.

    Raises:
        InputError: there is no such cluster, or this machine has no room for a cell.
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
    groups: dict[Path, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.directory, []).append(replace(job, threads=job.threads or 1))
    with connected(address) as ray:
        share = _share(ray, groups[jobs[0].directory][0])
        _check_room(ray, share, say, may_grow=address is not None)
        tasks = _Tasks(ray, share, say)
        try:
            for group in groups.values():
                tasks.add(replace(group[0], shared="only"))
            for job, outcome in tasks.outcomes():
                group = groups[job.directory]
                if job.shared == "there":
                    yield outcome
                elif outcome.failure:
                    yield from (replace(outcome, cell=one.cell) for one in group)
                else:
                    for one in group:
                        tasks.add(replace(one, shared="there"))
        finally:
            tasks.cancel()


def _share(ray: Any, job: Job) -> dict[str, int]:
    """What a job takes of a machine, as Ray has it; all jobs of a study are alike."""
    device = job.config.run.device
    on_gpu = device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    return {"num_cpus": job.threads or 1, "num_gpus": int(on_gpu)}


def _check_room(ray: Any, share: dict[str, int], say: Callable[[str], None], *, may_grow: bool) -> None:
    """Ray itself would wait for a fitting machine without a word, for ever.

    Raises:
        InputError: none has room for a job, and none can join.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": share["num_cpus"], "GPU": share["num_gpus"]}
    if any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
        return
    given = f"a cell takes {wanted['CPU']} cores and {wanted['GPU']} GPUs"
    if not may_grow:
        raise InputError("this machine has no room for a cell", given=given, remedy="fewer --threads, or --device cpu")
    say(f"no node has room for a cell ({given}): cells wait until one joins")


class _Tasks:
    """Jobs that Ray was given, until they are done."""

    def __init__(self, ray: Any, share: dict[str, int], say: Callable[[str], None]) -> None:
        self._ray = ray
        self._say = say
        # Ray would begin a task anew by itself, but silently, and without an end where memory ran out.
        self._submit = ray.remote(num_returns="streaming", max_retries=0, **share)(_work).remote
        self._folder = os.getcwd()
        self._running: dict[Any, tuple[Job, int]] = {}

    def add(self, job: Job, tries: int = 1) -> None:
        self._running[self._submit(job, self._folder)] = job, tries

    def outcomes(self) -> Iterator[tuple[Job, Outcome]]:
        """Of all jobs, also of those that are added meanwhile, as they come."""
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
        """Where the job started, or its outcome."""
        from ray.exceptions import RayError, RayTaskError

        try:
            return self._ray.get(next(stream))
        except RayTaskError as error:  # of ours, or kdc is not installed there
            return Outcome(job.cell, None, str(error).strip().splitlines()[-1])
        except RayError as error:
            return Outcome(job.cell, None, f"its worker was lost: {type(error).__name__}", died=True)

    def cancel(self) -> None:
        """End what still runs; its processes end with their workers."""
        for stream in self._running:
            self._ray.cancel(stream, force=True)


def _work(job: Job, folder: str) -> Iterator[str | Outcome]:
    """In a worker: where it starts, then the outcome.

    Args:
        job: what to do.
        folder: that relative paths of the study start from.
    """
    node = platform.node()
    yield node
    try:
        os.chdir(folder)
    except OSError as error:
        yield Outcome(job.cell, None, f"{node} does not see {folder} ({error.strerror}); all nodes need it")
    else:
        yield job.do()
