"""`kdc serve` in front of a stub of a hosted model: its time, and whether faults make wrong answers.

Commands (the first needs wrk):

    python benchmarks/upstream.py [--rounds 7] [--seconds 5]    latency
    python benchmarks/upstream.py --faults 60                   seconds of a soak
    python benchmarks/upstream.py --merge 10000000              simulated requests

The stub answers after 50 to 150 ms, always the same for one text. The soak asks two services while their upstream
fails, dies and starts again. Simulated requests go through the merging code alone. Ends with 1 unless all marks hold.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serving import faults
from benchmarks.serving.fronted import fronting, stub_process
from benchmarks.serving.load import Figures, check_wrk, drive
from benchmarks.serving.mark import Mark, marks_table
from benchmarks.serving.merging import Simulation
from benchmarks.serving.process import running
from benchmarks.serving.servers import ROOT
from benchmarks.serving.stub_answers import SYSTEM_ONE
from kdc.common import machine
from kdc.common.errors import KdcError
from kdc.pipeline.quality.latency import interval_of_median

sys.path.insert(0, str(ROOT / "tests"))

from upstreams import asked, texts, write_artifacts

DELAY_S, SPREAD = 0.1, 0.5  # or connections ask at once
CONNECTIONS = (1, 32, 256)
_LOCAL_MS, _FORWARDED_MS = 0.1, 2.0
_BODIES = 24  # one connection asks all in a round
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Way:
    """A load, compared with the way `beside`."""

    name: str
    asks: str  # "plain", "front" or "stub"
    names: tuple[str, ...]  # questions
    beside: str | None = None


WAYS = (
    Way("local, no --upstream", "plain", ("mood",)),
    Way("local", "front", ("mood",), "local, no --upstream"),
    Way("the stub alone", "stub", ("late",)),
    Way("forwarded", "front", ("late",), "the stub alone"),
    Way("mixed", "front", ("mood", "late"), "the stub alone"),
)


@dataclass
class Results:
    figures: dict[tuple[str, int], list[Figures]] = field(default_factory=dict)

    def more(self, way: Way, connections: int) -> list[float]:
        """Median ms above the way `beside`, in each round."""
        mine, theirs = (self.figures[name, connections] for name in (way.name, way.beside or way.name))
        return [one.p50_ms - other.p50_ms for one, other in zip(mine, theirs, strict=True)]


def latency(rounds: int, seconds: float, scratch: Path) -> Results:
    artifacts, results = write_artifacts(scratch), Results()
    sure = texts()[True, True]
    for way in WAYS:
        bodies = [json.dumps(asked(SYSTEM_ONE, text, way.names, text)) for text in sure[:_BODIES]]
        (scratch / way.name).write_text("\n".join(bodies) + "\n", encoding="utf-8")
    with (
        stub_process("--delay", str(DELAY_S), "--spread", str(SPREAD)) as stub,
        running(fronting(artifacts, None, scratch), scratch / "plain.log") as plain,
        running(fronting(artifacts, stub.port, scratch), scratch / "front.log") as front,
    ):
        ports = {"plain": plain.port, "front": front.port, "stub": stub.port}
        for number in range(rounds):
            sys.stderr.write(f"round {number + 1} of {rounds}\n")
            for connections in CONNECTIONS:
                # Growing noise would favour a way that always comes first.
                for way in WAYS if number % 2 else reversed(WAYS):
                    took = drive(
                        ports[way.asks],
                        SYSTEM_ONE,
                        scratch / way.name,
                        connections=connections,
                        rows=1,
                        seconds=seconds,
                    )
                    results.figures.setdefault((way.name, connections), []).append(took)
    return results


def latency_marks(results: Results) -> list[Mark]:
    marks = [_mark("local: ms more than without --upstream, 1 connection", _LOCAL_MS, results.more(WAYS[1], 1))]
    for way in WAYS[3:]:
        for connections in CONNECTIONS:
            what = f"{way.name}: ms more than the stub alone, {connections} connections"
            marks.append(_mark(what, _FORWARDED_MS, results.more(way, connections)))
    errors = sum(each.errors for runs in results.figures.values() for each in runs)
    return [*marks, Mark("requests that failed", False, 0, errors)]


def _mark(what: str, bound: float, rounds: Iterable[float]) -> Mark:
    values = list(rounds)
    return Mark(what, False, bound, median(values), interval_of_median(np.array(values), _CONFIDENCE))


def latency_table(results: Results) -> str:
    lines = ["| load | connections | requests/s | p50 ms | p99 ms | p50 more, ms | errors |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for way in WAYS:
        for connections in CONNECTIONS:
            runs = results.figures[way.name, connections]
            speed, p50, p99 = (
                median(getattr(run, name) for run in runs) for name in ("requests_per_second", "p50_ms", "p99_ms")
            )
            more = f"{median(results.more(way, connections)):+.2f}" if way.beside else ""
            errors = sum(run.errors for run in runs)
            lines.append(f"| {way.name} | {connections} | {speed:.0f} | {p50:.2f} | {p99:.2f} | {more} | {errors} |")
    return "\n".join(lines) + "\n"


def merge(requests: int) -> tuple[str, list[Mark]]:
    """A wrong merge raises `WrongMerge`."""
    lines, began = ["| outcome | requests |", "|---|---:|"], time.perf_counter()
    answers = 0
    for answers_alone in (False, True):
        simulation = Simulation(answers_alone=answers_alone)
        asyncio.run(simulation.run(requests // 2))
        mode = "answer" if answers_alone else "error"
        lines += [f"| {mode} {outcome} | {count} |" for outcome, count in sorted(simulation.outcomes.items())]
        answers += simulation.answers
    lines.append(
        f"\n{2 * (requests // 2)} requests, {answers} answers, {(time.perf_counter() - began) / 60:.1f} minutes"
    )
    return "\n".join(lines) + "\n", [Mark("wrong merges", False, 0, 0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5, help="of each load in each round")
    parser.add_argument("--faults", type=float, metavar="SECONDS", help="the soak instead")
    parser.add_argument("--merge", type=int, metavar="REQUESTS", help="simulated requests instead")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            table, marks = _measured(options, Path(scratch))
    except KdcError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    sys.stdout.write(f"{machine.cpu().model}, {machine.cores().usable} cores\n\n{table}\n{marks_table(marks)}")
    sys.exit(0 if all(mark.holds for mark in marks) else 1)


def _measured(options: argparse.Namespace, scratch: Path) -> tuple[str, list[Mark]]:
    if options.merge is not None:
        return merge(options.merge)
    if options.faults is not None:
        seen = faults.soak(options.faults, scratch)
        problems = "".join(f"{problem}\n" for problem in seen.problems[:20])
        return faults.table(seen) + problems, faults.marks(seen)
    check_wrk()
    results = latency(options.rounds, options.seconds, scratch)
    return latency_table(results), latency_marks(results)


if __name__ == "__main__":
    main()
