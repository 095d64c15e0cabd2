"""The whole curve of a task beside light classifiers by other packages: the picture in README, and its table.

Command: `python benchmarks/frontier.py RUN [--peers model2vec,fasttext,setfit] [--peer-python PYTHON] [--out FILE]`,
after `kdc compress --frontier --out RUN` of single texts in classes. The peers are trained on the rows of the run, but
for `optimum` (`peers/light.py`, whose docstring says how), with PYTHON, an environment of
`peers/requirements-light.txt`. Then all artifacts and peers are timed in turns on the same evaluation texts with one
thread each; every peer is a process of its own. Prints a Markdown table, and draws the page's picture with the peers in
it, as SVG.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peers.light import take_turn
from kdc.pipeline.data.prepared import open_data, texts_of
from kdc.pipeline.quality import metrics
from kdc.pipeline.quality.frontier import FrontierFacts, Point
from kdc.pipeline.quality.intervals import difference, score_interval
from kdc.pipeline.quality.latency import interval_of_median
from kdc.pipeline.report.frontier import curve, read_facts, table
from kdc.serving.engine.engine import Engine

ROOT = Path(__file__).resolve().parent.parent
_PEERS = "model2vec,fasttext,encoder,setfit,optimum"
_CONFIDENCE = 0.95
_WORDS = {"encoder": "MiniLM in ONNX + logistic regression", "optimum": "teacher in fp32 by Optimum"}


class Peer:
    """A peer's process: trained, and waiting for turns."""

    def __init__(self, name: str, python: str, run: Path) -> None:
        self.name = name
        command = [python, "-P", str(ROOT / "benchmarks" / "peers" / "light.py"), name, str(run)]
        sys.stderr.write(f"{' '.join(command)}\n")
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.told = self._reply()

    def turn(self) -> dict[str, float]:
        """Take one turn, see `take_turn`."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
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
    """Train the peers, time everything, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--peers", default=_PEERS)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="the picture, .svg")
    options = parser.parse_args()
    facts = read_facts(options.run)
    if facts is None:
        parser.error(f"{options.run} holds no frontier: kdc compress --frontier --out {options.run}")
    texts = texts_of(open_data(options.run / "data").rows("eval"))
    if not all(isinstance(text, str) for text in texts):
        parser.error("the peers read single texts, and these are pairs")
    with ExitStack() as stack:
        names = [name for name in options.peers.split(",") if name]
        peers = [stack.enter_context(Peer(name, options.peer_python, options.run)) for name in names]
        points = [*facts.points, *(_point(peer, facts, options.run, len(names)) for peer in peers)]
        turns: list[Callable[[], dict[str, float]]] = []
        for point in facts.points:
            engine = Engine.load(
                options.run / point.artifact, variant=point.variant, device="cpu", threads=1, verify=False
            )
            stack.enter_context(engine)
            turns.append(partial(take_turn, engine.predict, texts))  # type: ignore[arg-type]
        turns += [peer.turn for peer in peers]
        timed: list[list[dict[str, float]]] = [[] for _ in turns]
        for number in range(options.rounds):
            sys.stderr.write(f"round {number + 1} of {options.rounds}\n")
            for each, turn in zip(timed, turns, strict=True):
                each.append(turn())
    both = facts.model_copy(update={"points": tuple(map(_timed, points, timed)), "threads": 1, "left": ()})
    header, *rows = table(both)
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    sys.stdout.write("".join(f"| {' | '.join(cells)} |\n" for cells in lines))
    if options.out is not None:
        options.out.write_text(_standing_alone(curve(both)), encoding="utf-8")


def _point(peer: Peer, facts: FrontierFacts, run: Path, peers: int) -> Point:
    """A peer as a point of the curve; its times are not yet taken."""
    data = open_data(run / "data")
    kind, labels, groups = data.task.kind, np.asarray(data.rows("eval")["label"][:]), data.groups("eval")
    answers = np.asarray(peer.told["probabilities"])
    with np.load(run / "evaluate" / "logits.npz") as kept:
        teacher = kept["eval/teacher"]
    confidence = 1 - (1 - _CONFIDENCE) / (2 * (len(facts.points) + peers))
    gap = difference(answers, teacher, labels, kind, facts.metric, groups=groups, confidence=confidence)
    score = metrics.compute(answers, labels, kind, (facts.metric,))[facts.metric]
    return Point(
        student=_WORDS.get(peer.name, peer.name),
        artifact="",
        sha256="",
        variant="package",
        score=score,
        interval=score_interval(answers, labels, kind, facts.metric, groups=groups, confidence=confidence),
        difference=score - facts.teacher,
        difference_interval=gap.interval,
        latency_p50_ms=0.0,
        latency_p95_ms=0.0,
        latency_interval=None,
        rows_per_second=0.0,
        rows_interval=None,
        size_mb=peer.told["size_bytes"] / 1e6,
        parameters=None,
        training_seconds=peer.told["seconds"],
    )


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


def _standing_alone(figure: str) -> str:
    """A figure of the page with the page's colours, light and dark, so that it stands by itself."""
    page = (ROOT / "pipeline" / "report" / "page.css").read_text(encoding="utf-8")
    light, dark = re.findall(r"(--ink:.*?)\}", page, flags=re.DOTALL)[:2]
    style = f"svg {{ background: var(--paper); {light} }} @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}"
    end = figure.index(">") + 1
    return f"{figure[:end]}<style>{' '.join(style.split())}</style>{figure[end:]}"


if __name__ == "__main__":
    main()
