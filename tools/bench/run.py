"""Starts every subject in a process of its own and lets them measure themselves in turns, so that the noise of the
machine meets all of them alike.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from kdc.common import machine
from kdc.common.errors import InputError, KdcError
from kdc.tools.bench.result import BenchMachine, BenchResult, BenchSettings, CaseResult, Loaded, SubjectResult, Turn

if TYPE_CHECKING:
    from kdc.tools.bench.peak import Share

STARTS = 3
_PACKAGES = ("kdc", "onnxruntime-gpu", "onnxruntime", "tokenizers", "torch", "transformers")


@dataclass(frozen=True)
class Subject:
    """What is measured."""

    name: str  # what tables call it
    path: Path  # folder of an artifact or of a Hugging Face model
    variant: str | None = None  # ONNX file of the artifact; None takes the manifest's choice
    threads: int | None = None  # of a forward pass; None takes all cores that may be used


@dataclass(frozen=True)
class Case:
    """Rows a call, and tokens a row."""

    batch: int
    length: int


def parse_subject(text: str) -> Subject:
    """Read `[NAME=]PATH[@VARIANT]`; without a name the subject is called by its folder, or by the run's folder.

    Raises:
        InputError: there is no such folder.
    """
    name, sign, place = text.partition("=")
    if not sign or "/" in name:
        name, place = "", text
    place, sign, variant = place.rpartition("@")
    if not sign or Path(f"{place}@{variant}").exists():
        place, variant = (f"{place}@{variant}" if sign else variant), ""
    path = Path(place)
    if not path.is_dir():
        raise InputError("there is no such folder", given=place, remedy="name an artifact or a Hugging Face model")
    folder = path.absolute()
    own = folder.parent.name if folder.name in ("artifact", "model") else folder.name
    return Subject(name or (f"{own}@{variant}" if variant else own), path, variant or None)


def run_bench(
    subjects: Sequence[Subject],
    cases: Sequence[Case],
    *,
    rounds: int = 5,
    seconds: float = 0.5,
    device: str = "auto",
    threads: Sequence[int] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> BenchResult:
    """Measure all subjects at all cases.

    Args:
        subjects: the others are compared with the first.
        cases: those whose rows are longer than a subject takes are left out for it.
        rounds: in each, every subject has one turn at every case.
        seconds: length of a turn.
        device: "auto", "cpu" or "cuda".
        threads: of a forward pass. With several numbers every subject is measured with each of them, as if they were
            subjects of their own; with none, with all cores that may be used.
        progress: called with turns done and turns in all.

    Raises:
        InputError: two subjects have one name, or one is neither an artifact nor a model.
        KdcError: a subject cannot be loaded, or fails.
    """
    subjects = [each for subject in subjects for each in _with_threads(subject, threads)]
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        raise InputError("two subjects have the same name", given=", ".join(names), remedy="name them: NAME=PATH")
    running: list[_Running] = []
    starts: dict[Subject, list[float]] = {subject: [] for subject in subjects}
    try:
        for _ in range(STARTS):  # of the processes that are started, the last ones go on to measure
            for process in running:
                process.stop()
            running.clear()
            for subject in subjects:
                running.append(_Running(subject, device))
                starts[subject].append(running[-1].start())
        for process in running:
            process.watch_peak()
        for process, case in _turns(running, cases, rounds, progress):
            process.take_turn(case, seconds)
        memory = [process.finish() for process in running]
    finally:
        for process in running:
            process.stop()
    return BenchResult(
        machine=BenchMachine(
            cpu=machine.cpu(), cores=machine.cores(), nvidia=machine.nvidia(), packages=machine.versions(_PACKAGES)
        ),
        settings=BenchSettings(rounds=rounds, seconds=seconds, device=device, starts=STARTS),
        subjects=tuple(
            SubjectResult(
                name=process.subject.name,
                path=str(process.subject.path),
                cold_start_s=median(starts[process.subject]),
                peak_memory_bytes=peak,
                cases=tuple(
                    _summary(case, turns, running[0].turns.get(case), process.peak_shares.get(case))
                    for case, turns in process.turns.items()
                ),
                **process.loaded.model_dump(),
            )
            for process, peak in zip(running, memory, strict=True)
        ),
    )


def _with_threads(subject: Subject, threads: Sequence[int]) -> list[Subject]:
    """A subject with each number of threads; its name says which, where there are several."""
    if len(threads) < 2:
        return [replace(subject, threads=number) for number in threads] or [subject]
    named = {number: f"{subject.name}, {number} thread{'s' * (number > 1)}" for number in threads}
    return [replace(subject, name=name, threads=number) for number, name in named.items()]


class _Running:
    """The process of one subject, and the turns that it has measured by case."""

    def __init__(self, subject: Subject, device: str) -> None:
        self.subject = subject
        self.turns: dict[Case, list[Turn]] = {}
        self.peak_shares: dict[Case, list[float]] = {}  # of each turn, where it can be told
        self._peak_share: Share | None = None
        self._began = time.perf_counter()
        path = str(subject.path.absolute())
        self._request = {
            "path": path,
            "variant": subject.variant,
            "device": device,
            "threads": subject.threads,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "kdc.tools.bench.subject_process"],  # -P: no module of the caller's folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self) -> float:
        """Wait for the first answer; seconds from the start of the process to it."""
        self.loaded = Loaded.model_validate(self._ask(**self._request))
        return time.perf_counter() - self._began

    def watch_peak(self) -> None:
        """Tell from now on what share of the machine's peak each turn reaches, where that can be told."""
        from kdc.tools.bench.peak import peak_share

        self._peak_share = peak_share(self.subject.path.resolve(), self.loaded)

    def take_turn(self, case: Case, seconds: float) -> None:
        """Measure one case for that many seconds."""
        reply = self._ask(batch=case.batch, length=case.length, seconds=seconds)
        turn = Turn.model_validate(reply)
        self.turns.setdefault(case, []).append(turn)
        if self._peak_share is not None:
            share = self._peak_share(case.batch, turn.tokens, median(turn.ms) / 1000)
            if share is not None:
                self.peak_shares.setdefault(case, []).append(share)

    def finish(self) -> int:
        """End the process; the most memory that it held, in bytes."""
        return self._ask()["peak_memory_bytes"]

    def stop(self) -> None:
        """Kill the process, whatever it does."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, **request: Any) -> dict[str, Any]:
        """Send a request, an empty line where there is none, and read the reply.

        Raises:
            KdcError, InputError: as the subject's process reports it; KdcError also where the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write((json.dumps(request) if request else "") + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer.endswith("\n"):  # the process may have been killed in the middle of a reply
            raise KdcError(
                "a subject's process ended",
                given=f"{self.subject.name}, exit {self._process.wait()}",
                remedy="its last words are above",
            )
        reply = json.loads(answer)
        if "error" in reply:
            what, given, remedy = reply["error"]
            kind = InputError if reply["exit_code"] == InputError.exit_code else KdcError
            raise kind(f"{self.subject.name}: {what}", given=given, remedy=remedy)
        return reply


def _turns(
    running: Sequence[_Running], cases: Sequence[Case], rounds: int, progress: Callable[[int, int], None]
) -> Iterator[tuple[_Running, Case]]:
    """All turns, in order. Every round begins with another subject, because the first one meets colder caches."""
    turns = [
        (process, case)
        for number in range(rounds)
        for case in cases
        for process in (running[(place + number) % len(running)] for place in range(len(running)))
        if case.length <= process.loaded.longest
    ]
    for done, turn in enumerate(turns):
        progress(done, len(turns))
        yield turn
    progress(len(turns), len(turns))


def _summary(
    case: Case, turns: Sequence[Turn], first: Sequence[Turn] | None, peak_shares: Sequence[float] | None
) -> CaseResult:
    """One subject's turns at one case, beside those of the first subject, where that one takes such rows."""
    calls = [milliseconds for turn in turns for milliseconds in turn.ms]
    p50, p95, p99 = (float(value) for value in np.percentile(calls, (50, 95, 99)))
    speeds = [turn.rows_per_second(case.batch) for turn in turns]
    ratios = [speed / turn.rows_per_second(case.batch) for speed, turn in zip(speeds, first or (), strict=False)]
    return CaseResult(
        batch=case.batch,
        length=case.length,
        tokens=turns[0].tokens,
        calls=len(calls),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        rows_per_second=median(speeds),
        peak_share=None if peak_shares is None else median(peak_shares),
        against_first=median(ratios) if ratios else None,
    )
