"""Starts the subjects and has them measure themselves in turns, so that the machine's noise meets all alike."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from kdc.common import machine
from kdc.common.errors import InputError, KdcError

STARTS = 3
_PACKAGES = ("kdc", "onnxruntime-gpu", "onnxruntime", "tokenizers", "torch", "transformers")


@dataclass(frozen=True)
class Subject:
    """What is measured: a folder, a variant of it, and its name in tables."""

    name: str
    path: Path
    variant: str | None = None


@dataclass(frozen=True)
class Case:
    """Rows a call, and tokens a row."""

    batch: int
    length: int


def parse_subject(text: str) -> Subject:
    """`[NAME=]PATH[@VARIANT]`; without a name, the folder's own, or its run's.

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
    rounds: int,
    seconds: float,
    device: str = "auto",
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measure all subjects on all cases.

    Args:
        subjects: the first is the one that the others are compared with.
        cases: those that are longer than a subject takes are left out for it.
        rounds: in each, every subject has its turn at every case.
        seconds: of a turn.
        device: "auto", "cpu" or "cuda".
        threads: of a call; None: all cores that may be used.
        progress: called with turns done and turns in all.

    Returns:
        machine, settings, subjects: each with name, path, runtime, variant, on, threads, notes, cold_start_s (median of
        three starts, until the first answer), peak_memory_bytes, and cases: batch, length, tokens, calls, p50_ms,
        p95_ms, p99_ms, rows_per_second (median of the rounds), against_first (rows/s over the first subject's: median
        of the ratios within each round).

    Raises:
        InputError: two subjects have one name, or one is neither an artifact nor a model.
        KdcError: one cannot be loaded, or fails.
    """
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        raise InputError("two subjects have the same name", given=", ".join(names), remedy="name them: NAME=PATH")
    running: list[_Running] = []
    try:
        for number in range(STARTS):
            for place, subject in enumerate(subjects):
                started = _Running(subject, device, threads)
                if number:
                    started.starts = [*running[place].starts, *started.starts]
                    running[place].stop()
                    running[place] = started
                else:
                    running.append(started)
        for turn in _turns(running, cases, rounds, progress):
            turn.one.take(turn.case, seconds)
        for one in running:
            one.finish()
    finally:
        for one in running:
            one.stop()
    return {
        "machine": _machine(),
        "settings": {"rounds": rounds, "seconds": seconds, "device": device, "starts": STARTS},
        "subjects": [_figures(one, running[0]) for one in running],
    }


@dataclass
class _Running:
    """A subject's process, and what it told."""

    subject: Subject
    device: str
    threads: int | None
    about: dict[str, Any] = field(init=False)
    starts: list[float] = field(init=False)
    rounds: dict[Case, list[dict[str, Any]]] = field(default_factory=dict)
    memory: int = 0

    def __post_init__(self) -> None:
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kdc.tools.bench.subject"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        subject = self.subject
        self.about = self._ask(
            json.dumps(
                {
                    "path": str(subject.path.absolute()),
                    "variant": subject.variant,
                    "device": self.device,
                    "threads": self.threads,
                }
            )
        )
        self.starts = [time.perf_counter() - began]

    def take(self, case: Case, seconds: float) -> None:
        """One turn."""
        found = self._ask(json.dumps({"batch": case.batch, "length": case.length, "seconds": seconds}))
        self.rounds.setdefault(case, []).append(found)

    def finish(self) -> None:
        self.memory = self._ask("")["peak_memory_bytes"]

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer.endswith("\n"):  # it may have been killed in the middle of one
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


@dataclass(frozen=True)
class _Turn:
    one: _Running
    case: Case


def _turns(
    running: Sequence[_Running], cases: Sequence[Case], rounds: int, progress: Callable[[int, int], None]
) -> Iterator[_Turn]:
    """Every round begins with another subject: who comes first meets caches that are colder."""
    turns = [
        _Turn(running[(place + number) % len(running)], case)
        for number in range(rounds)
        for case in cases
        for place in range(len(running))
    ]
    wanted = [turn for turn in turns if turn.case.length <= turn.one.about["longest"]]
    for done, turn in enumerate(wanted):
        progress(done, len(wanted))
        yield turn
    progress(len(wanted), len(wanted))


def _figures(one: _Running, first: _Running) -> dict[str, Any]:
    cases = []
    for case, turns in one.rounds.items():
        calls = [milliseconds for turn in turns for milliseconds in turn["ms"]]
        p50, p95, p99 = (float(value) for value in np.percentile(calls, (50, 95, 99)))
        speeds = [_rows_per_second(case, turn) for turn in turns]
        theirs = [_rows_per_second(case, turn) for turn in first.rounds.get(case, [])]
        cases.append(
            {
                "batch": case.batch,
                "length": case.length,
                "tokens": turns[0]["tokens"],
                "calls": len(calls),
                "p50_ms": p50,
                "p95_ms": p95,
                "p99_ms": p99,
                "rows_per_second": median(speeds),
                "against_first": median(map(lambda mine, other: mine / other, speeds, theirs)) if theirs else None,
            }
        )
    return {
        "name": one.subject.name,
        "path": str(one.subject.path),
        **one.about,
        "cold_start_s": median(one.starts),
        "peak_memory_bytes": one.memory,
        "cases": cases,
    }


def _rows_per_second(case: Case, turn: dict[str, Any]) -> float:
    return 1000 * case.batch * len(turn["ms"]) / sum(turn["ms"])


def _machine() -> dict[str, Any]:
    return {
        "cpu": machine.cpu(),
        "cores": machine.cores(),
        "nvidia": machine.nvidia(),
        "packages": machine.versions(_PACKAGES),
    }
