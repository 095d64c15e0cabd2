"""kdc's frontier against light classifiers of other packages, as a Markdown table for `picture.py`.

Command: `python benchmarks/frontier.py RUN [--peers model2vec,fasttext,setfit] [--peer-python PYTHON]`, after `kdc
compress --frontier --out RUN` on single texts in classes. PYTHON has `peers/requirements-light.txt`. All models are
timed in turns, on one thread each. A student's training seconds include the teacher's.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peers.light import take_turn
from kdc.pipeline.config import metrics
from kdc.pipeline.data.prepared import open_data, texts_of
from kdc.pipeline.quality.frontier import FrontierFacts, Point
from kdc.pipeline.quality.intervals import difference, score_interval
from kdc.pipeline.quality.latency import interval_of_median
from kdc.pipeline.report.frontier import read_facts, table
from kdc.pipeline.rundir.record import read_record
from kdc.serving.engine.engine import Engine

ROOT = Path(__file__).resolve().parent.parent
_PEERS = "model2vec,fasttext,encoder,setfit,optimum"
_CONFIDENCE = 0.95
_BEFORE_A_STUDENT = ("teacher", "targets")


@dataclass(frozen=True)
class Entrant:
    """A row of the table: a student in one precision, or a form of a peer."""

    name: str
    variant: str  # "int8", ..., or "package"
    probabilities: NDArray[np.floating]  # (rows, labels)
    size_bytes: int
    seconds: float | None  # of all training; None without training
    turn: Callable[[], dict[str, float]]  # see `take_turn`


class Peer:
    def __init__(self, name: str, python: str, run: Path) -> None:
        self.name = name
        command = [python, "-P", str(ROOT / "benchmarks" / "peers" / "light.py"), name, str(run)]
        sys.stderr.write(f"{' '.join(command)}\n")
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.told = self._reply()

    def turn(self, form: str) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{form}\n")
        self._process.stdin.flush()
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with {self._process.wait()}; its last words are above")
        return json.loads(line)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--peers", default=_PEERS)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    facts = read_facts(options.run)
    if facts is None:
        parser.error(f"{options.run} holds no frontier: kdc compress --frontier --out {options.run}")
    texts = texts_of(open_data(options.run / "data").rows("eval"))
    if not all(isinstance(text, str) for text in texts):
        parser.error("the peers read single texts, and these are pairs")
    with ExitStack() as stack:
        entrants = _ours(stack, options.run, facts, texts)
        for name in filter(None, options.peers.split(",")):
            entrants += _forms_of(stack.enter_context(Peer(name, options.peer_python, options.run)))
        turns: list[list[dict[str, float]]] = [[] for _ in entrants]
        for number in range(options.rounds):
            sys.stderr.write(f"round {number + 1} of {options.rounds}\n")
            for each, entrant in zip(turns, entrants, strict=True):
                each.append(entrant.turn())
    points = map(_timed, _points(entrants, facts, options.run), turns)
    both = facts.model_copy(update={"points": tuple(points), "threads": 1, "left": ()})
    header, *rows = table(both)
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    sys.stdout.write("".join(f"| {' | '.join(cells)} |\n" for cells in lines))


def _ours(stack: ExitStack, run: Path, facts: FrontierFacts, texts: list[Any]) -> list[Entrant]:
    stages = (read_record(run / name) for name in _BEFORE_A_STUDENT)
    before = sum(stage.seconds for stage in stages if stage is not None)
    entrants = []
    for point in facts.points:
        for variant in (point.variant, "fp32") if point.variant == "int8" else (point.variant,):
            engine = Engine.load(run / point.artifact, variant=variant, device="cpu", threads=1, verify=False)
            stack.enter_context(engine)
            assert engine.manifest is not None
            size = engine.manifest.variants[engine.variant].size_bytes  # type: ignore[index]
            seconds = None if point.training_seconds is None else before + point.training_seconds
            turn = partial(take_turn, engine.predict, texts)
            entrants.append(Entrant(point.student, variant, engine.predict(texts), size, seconds, turn))
    return entrants


def _forms_of(peer: Peer) -> list[Entrant]:
    entrants = []
    for form, told in peer.told["forms"].items():
        answers = np.asarray(told["probabilities"])
        turn = partial(peer.turn, form)
        entrants.append(Entrant(form, "package", answers, told["size_bytes"], peer.told["seconds"], turn))
    return entrants


def _points(entrants: list[Entrant], facts: FrontierFacts, run: Path) -> list[Point]:
    """Points without times. Their intervals hold together (Bonferroni)."""
    data = open_data(run / "data")
    kind, labels, groups = data.task.kind, np.asarray(data.rows("eval")["label"][:]), data.groups("eval")
    with np.load(run / "evaluate" / "logits.npz") as kept:
        teacher = kept["eval/teacher"]
    sure = 1 - (1 - _CONFIDENCE) / (2 * len(entrants))
    points = []
    for entrant in entrants:
        answers = entrant.probabilities
        score = metrics.compute(answers, labels, kind, (facts.metric,))[facts.metric]
        rows = labels, kind, facts.metric
        gap = difference(answers, teacher, *rows, groups=groups, confidence=sure)
        points.append(
            Point(
                student=entrant.name,
                artifact="",
                sha256="",
                variant=entrant.variant,
                score=score,
                interval=score_interval(answers, *rows, groups=groups, confidence=sure),
                difference=score - facts.teacher,
                difference_interval=gap.interval,
                latency_p50_ms=0.0,
                latency_p95_ms=0.0,
                latency_interval=None,
                rows_per_second=0.0,
                rows_interval=None,
                size_mb=entrant.size_bytes / 1e6,
                parameters=None,
                training_seconds=entrant.seconds,
            )
        )
    return points


def _timed(point: Point, turns: list[dict[str, float]]) -> Point:
    p50, p95, speed = (np.array([turn[name] for turn in turns]) for name in ("p50_ms", "p95_ms", "rows_per_second"))
    times = {
        "latency_p50_ms": float(np.median(p50)),
        "latency_p95_ms": float(np.median(p95)),
        "latency_interval": interval_of_median(p50, _CONFIDENCE),
        "rows_per_second": float(np.median(speed)),
        "rows_interval": interval_of_median(speed, _CONFIDENCE),
    }
    return point.model_copy(update=times)


if __name__ == "__main__":
    main()
