"""Tables and marks from rounds."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from benchmarks.serving.load import Figures
from benchmarks.serving.mark import Mark, marks_table
from benchmarks.serving.texts import SETS
from kdc.pipeline.quality.latency import interval_of_median

_PEERS = {"uvicorn": 0.85, "at-once": 0.85, "bentoml-batchable": 1.6, "fastapi-pipeline": 3, "infinity": 3}
_CONFIDENCE = 0.95


@dataclass
class Results:
    """Measurements.

    Attributes:
        figures: by load, server and round.
        ready: seconds of each start, by server.
        resident: MB after each load, by server.
        agreement: percent of rows with the engine's label.
    """

    figures: dict[str, dict[str, list[Figures]]] = field(default_factory=dict)
    ready: dict[str, list[float]] = field(default_factory=dict)
    resident: dict[str, list[float]] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, load: str, server: str, figures: Figures) -> None:
        self.figures.setdefault(load, {}).setdefault(server, []).append(figures)

    def of(self, load: str, server: str) -> list[Figures]:
        return self.figures.get(load, {}).get(server, [])


def ratios(one: list[Figures], other: list[Figures]) -> list[float]:
    """Ratios of rows/s in each round, which cancel shared noise."""
    pairs = zip(one, other, strict=False)
    return [mine.rows_per_second / theirs.rows_per_second for mine, theirs in pairs if theirs.rows_per_second]


def marks(results: Results) -> list[Mark]:
    """Marks of what ran. Intervals need six rounds."""
    found: list[Mark] = []

    def judge(least: bool, what: str, bound: float, rounds: Iterable[float]) -> None:
        if values := list(rounds):
            interval = interval_of_median(np.array(values), _CONFIDENCE)
            found.append(Mark(what, least, bound, median(values), interval))

    least, most = partial(judge, True), partial(judge, False)

    for texts in SETS:
        many = results.of(f"{texts}-32", "kdc")
        for peer, bound in _PEERS.items():
            least(f"{texts}, 32 connections: kdc to {peer}", bound, ratios(many, results.of(f"{texts}-32", peer)))
        most(f"{texts}, 32 connections: p99 to p50", 3, (each.p99_ms / each.p50_ms for each in many))
        batches = f"{texts}-8x32"
        least(
            f"{texts}, 32 texts a request: kdc to raw",
            0.9,
            ratios(results.of(batches, "kdc"), results.of(batches, "raw")),
        )
        least(f"{texts}: 128 connections to 32", 1, ratios(results.of(f"{texts}-128", "kdc"), many))
        one = zip(results.of(f"{texts}-1", "kdc"), results.of(f"{texts}-1", "raw"), strict=False)
        most(f"{texts}, one connection: p50 above raw's, ms", 0.6, (kdc.p50_ms - raw.p50_ms for kdc, raw in one))
    if results.ready.get("kdc") and results.ready.get("bento-empty"):
        later = median(results.ready["kdc"]) - median(results.ready["bento-empty"])
        most("ready after an empty BentoML service, s", 1, [later])
    if "kdc" in results.resident:
        most("resident, MB", 250, [max(results.resident["kdc"])])
    return found


def markdown(results: Results) -> str:
    parts = [_loads(results), _servers(results), marks_table(marks(results))]
    parts += [f"left out: {name}: {why}\n" for name, why in results.left_out.items()]
    return "\n".join(part for part in parts if part)


def _loads(results: Results) -> str:
    lines = [
        "| load | server | requests/s | rows/s | kdc is | p50 ms | p95 ms | p99 ms | errors |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for load, by_server in results.figures.items():
        for server, runs in by_server.items():
            middle = {name: median(run.as_dict()[name] for run in runs) for name in runs[0].as_dict()}
            times = ratios(by_server.get("kdc", []), runs) if server != "kdc" else []
            lines.append(
                f"| {load} | {server} | {middle['requests_per_second']:.0f} | {middle['rows_per_second']:.0f} | "
                f"{f'{median(times):.2f} x' if times else ''} | {middle['p50_ms']:.2f} | {middle['p95_ms']:.2f} | "
                f"{middle['p99_ms']:.2f} | {sum(run.errors for run in runs)} |"
            )
    return "\n".join(lines) + "\n" if results.figures else ""


def _servers(results: Results) -> str:
    lines = ["| server | s to ready | resident MB | same label % |", "|---|---:|---:|---:|"]
    for server, seconds in results.ready.items():
        same = f"{results.agreement[server]:.1f}" if server in results.agreement else ""
        lines.append(f"| {server} | {median(seconds):.2f} | {max(results.resident[server]):.0f} | {same} |")
    return "\n".join(lines) + "\n" if results.ready else ""


def as_json(results: Results) -> dict[str, Any]:
    return {
        "loads": {
            load: {server: [run.as_dict() for run in runs] for server, runs in by_server.items()}
            for load, by_server in results.figures.items()
        },
        "seconds_to_ready": results.ready,
        "resident_mb": results.resident,
        "same_label_percent": results.agreement,
        "left_out": results.left_out,
        "marks": [{**asdict(mark), "verdict": mark.verdict} for mark in marks(results)],
    }
