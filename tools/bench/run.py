"""Runs each subject in its own process, in turns, so the machine's noise affects all alike."""

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from kdc.common import machine
from kdc.common.errors import InputError, KdcError
from kdc.tools.bench.profile import peak_share
from kdc.tools.bench.result import BenchMachine, BenchResult, BenchSettings, CaseResult, Loaded, SubjectResult, Turn

STARTS = 3
_PACKAGES = ("kdc", "onnxruntime-gpu", "onnxruntime", "tokenizers", "torch", "transformers")


@dataclass(frozen=True)
class Subject:
    name: str
    path: Path
    variant: str | None = None  # None: the manifest's choice
    threads: int | None = None  # None: all usable cores


@dataclass(frozen=True)
class Case:
    batch: int  # rows a call
    length: int  # tokens a row


def parse_subject(text: str) -> Subject:
    """Read `[NAME=]PATH[@VARIANT]`. The default name is the folder's or run's. Raises InputError without a folder."""
    name, sign, address = text.partition("=")
    if not sign or "/" in name:
        name, address = "", text
    variant = ""
    if not Path(address).exists() and "@" in address:
        address, _, variant = address.rpartition("@")
    path = Path(address)
    if not path.is_dir():
        raise InputError("there is no such folder", given=address, remedy="name an artifact or a Hugging Face model")
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
    """Measure all subjects at all cases, and compare them with the first.

    Args:
        cases: a subject skips rows too long for it.
        threads: each measured with every subject; if empty, all usable cores.

    Raises:
        InputError: two subjects have one name, or one is neither an artifact nor a model.
        KdcError: a subject cannot be loaded, or fails.
    """
    subjects = [with_threads for subject in subjects for with_threads in _with_threads(subject, threads)]
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        raise InputError("two subjects have the same name", given=", ".join(names), remedy="name them: NAME=PATH")
    running: list[_Running] = []
    starts: dict[Subject, list[float]] = {subject: [] for subject in subjects}
    try:
        for _ in range(STARTS):  # the last processes stay, to measure
            for process in running:
                process.stop()
            running.clear()
            for subject in subjects:
                running.append(_Running(subject, device))
                starts[subject].append(running[-1].start())
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
                    _summary(case, turns, running[0].turns.get(case, [])) for case, turns in process.turns.items()
                ),
                **process.loaded.model_dump(),
            )
            for process, peak in zip(running, memory, strict=True)
        ),
    )


def _with_threads(subject: Subject, threads: Sequence[int]) -> list[Subject]:
    if len(threads) < 2:
        return [replace(subject, threads=number) for number in threads] or [subject]
    named = {number: f"{subject.name}, {number} thread{'s' * (number > 1)}" for number in threads}
    return [replace(subject, name=name, threads=number) for number, name in named.items()]


class _Running:
    def __init__(self, subject: Subject, device: str) -> None:
        self.subject = subject
        self.turns: dict[Case, list[Turn]] = {}
        self._device = device
        self._began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "kdc.tools.bench.subject_process"],  # -P: no modules from the current folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def start(self) -> float:
        """Returns seconds to the first answer."""
        subject = self.subject
        self.loaded: Loaded = self._ask(
            path=str(subject.path.absolute()), variant=subject.variant, device=self._device, threads=subject.threads
        )
        return time.perf_counter() - self._began

    def take_turn(self, case: Case, seconds: float) -> None:
        turn: Turn = self._ask(batch=case.batch, length=case.length, seconds=seconds)
        share = peak_share(self.subject.path, self.loaded, case.batch, turn.tokens, median(turn.ms) / 1000)
        self.turns.setdefault(case, []).append(turn.model_copy(update={"peak_share": share}))

    def finish(self) -> int:
        """End the process; returns its peak memory in bytes."""
        return int(self._ask())

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write((json.dumps(request) if request else "").encode() + b"\n")
            self._process.stdin.flush()
            reply = pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):  # killed
            code, remedy = self._process.wait(), "its last words are above"
            given = f"{self.subject.name}, exit {code}"
            raise KdcError("a subject's process ended", given=given, remedy=remedy) from None
        if isinstance(reply, KdcError):
            raise type(reply)(f"{self.subject.name}: {reply.what}", given=reply.given, remedy=reply.remedy)
        return reply


def _turns(
    running: Sequence[_Running], cases: Sequence[Case], rounds: int, progress: Callable[[int, int], None]
) -> Iterator[tuple[_Running, Case]]:
    """Each round begins with another subject, because the first meets colder caches."""
    turns = []
    for first in (number % len(running) for number in range(rounds)):
        in_order = [*running[first:], *running[:first]]
        turns += [(process, case) for case in cases for process in in_order if case.length <= process.loaded.longest]
    for done, turn in enumerate(turns):
        progress(done, len(turns))
        yield turn
    progress(len(turns), len(turns))


def _summary(case: Case, turns: Sequence[Turn], first: Sequence[Turn]) -> CaseResult:
    calls = [milliseconds for turn in turns for milliseconds in turn.ms]
    p50, p95, p99 = np.percentile(calls, (50, 95, 99)).tolist()
    speeds = [turn.rows_per_second(case.batch) for turn in turns]
    ratios = [speed / turn.rows_per_second(case.batch) for speed, turn in zip(speeds, first, strict=False)]
    peak_shares = [turn.peak_share for turn in turns if turn.peak_share is not None]
    return CaseResult(
        batch=case.batch,
        length=case.length,
        tokens=turns[0].tokens,
        calls=len(calls),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        rows_per_second=median(speeds),
        peak_share=median(peak_shares) if peak_shares else None,
        against_first=median(ratios) if ratios else None,
    )
