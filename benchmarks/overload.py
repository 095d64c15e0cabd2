"""`kdc serve` under several times its capacity: do excess requests end quickly, and the others correctly?

Command: `python benchmarks/overload.py --run RUN [--data GLUE_FOLDER] [--seconds 60] [--times 4]`. 16 connections
measure the capacity; then requests arrive at `--times` that rate; then 16 connections again. Ends with 1 if a mark
fails. "The longest that the queue waits" is computed from its limits and the capacity.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serving.asking import Asker, Phase, make_questions
from benchmarks.serving.mark import Mark, marks_table
from benchmarks.serving.process import running
from benchmarks.serving.servers import Subject, all_servers
from benchmarks.serving.texts import SETS, read_rows
from kdc.artifact.folder import load_manifest
from kdc.common.errors import KdcError
from kdc.serving.engine.engine import Engine
from kdc.serving.http.settings import resolve

_QUESTIONS = 300
_HOLD_S = 10.0  # each steady phase


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/pydocs"), help="directory of a kdc compress")
    parser.add_argument("--data", type=Path, help="GLUE's folder")
    parser.add_argument("--seconds", type=float, default=60, help="of the overload")
    parser.add_argument("--times", type=float, default=4, help="what the service can hold")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            phases, waits = asyncio.run(_phases(options, Path(scratch)))
    except KdcError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    marks = _marks(phases, waits, options.times)
    if options.json:
        summary = {name: _summary(phase) for name, phase in phases.items()}
        found = [{**asdict(mark), "verdict": mark.verdict} for mark in marks]
        sys.stdout.write(json.dumps({"phases": summary, "marks": found}, indent=2) + "\n")
    else:
        sys.stdout.write(_table(phases) + "\n" + marks_table(marks))
    sys.exit(0 if all(mark.holds for mark in marks) else 1)


async def _phases(options: argparse.Namespace, scratch: Path) -> tuple[dict[str, Phase], float]:
    artifact = options.run / "artifact"
    manifest = load_manifest(artifact)
    servers, _ = all_servers(Subject(artifact.resolve(), manifest, None, None, scratch))
    server = servers["kdc"]
    assert server.dialect is not None
    rows = [row for name in SETS for row in read_rows(name, options.data, is_pair=manifest.task.is_pair)]
    engine = Engine.load(artifact, device="cpu")
    questions = make_questions(engine, server.dialect, rows, _QUESTIONS)
    tokens = sum(map(len, engine.encode(rows))) / len(rows)
    labels = engine.labels or ("score",)
    del engine  # its threads would share the cores
    with running(server, scratch / "kdc.log") as up:
        asker = Asker(up, labels, questions)
        await asker.closed(_HOLD_S / 2)  # warm-up
        before = await asker.closed(_HOLD_S)
        during = await asker.open(options.seconds, options.times * before.answered)
        after = await asker.closed(_HOLD_S)
    limits = resolve()
    waits = min(limits.max_queue_s, limits.max_queue_tokens / (tokens * before.answered))
    return {"before": before, "overload": during, "after": after}, waits


def _marks(phases: dict[str, Phase], waits: float, times: float) -> list[Mark]:
    before, during, after = phases["before"], phases["overload"], phases["after"]
    settled = during.resident[len(during.resident) // 4 :]
    every = phases.values()
    return [
        Mark("offered, times what it can hold", True, 0.9 * times, during.offered / before.answered),
        Mark("replies that are not of their own rows", False, 0, sum(phase.wrong for phase in every)),
        Mark("neither answered nor refused", False, 0, sum(phase.failed for phase in every)),
        Mark("refused before the overload and after it", False, 0, len(before.refused) + len(after.refused)),
        Mark("refused without Retry-After", False, 0, during.without_retry_after),
        Mark("refused: p99, s", False, 0.25, _percentile(during.refused, 99)),
        Mark(
            "accepted: p99, in times the longest that the queue waits",
            False,
            1.5,
            _percentile(during.accepted, 99) / (waits + _percentile(before.accepted, 99)),
        ),
        Mark("answered, times what it can hold", True, 0.7, during.answered / before.answered),
        Mark("memory after the first quarter: growth, MB", False, 10, settled[-1] - settled[0]),
        Mark("afterwards: rows/s to before", True, 0.85, after.answered / before.answered),
    ]


def _summary(phase: Phase) -> dict[str, Any]:
    return {
        "offered rows/s": phase.offered,
        "answered rows/s": phase.answered,
        "accepted": len(phase.accepted),
        "refused": len(phase.refused),
        "accepted p50 ms": 1000 * _percentile(phase.accepted, 50),
        "accepted p99 ms": 1000 * _percentile(phase.accepted, 99),
        "refused p50 ms": 1000 * _percentile(phase.refused, 50),
        "refused p99 ms": 1000 * _percentile(phase.refused, 99),
        "wrong": phase.wrong,
        "failed": phase.failed,
        "MB at first": phase.resident[0],
        "MB at last": phase.resident[-1],
    }


def _table(phases: dict[str, Phase]) -> str:
    summaries = {name: _summary(phase) for name, phase in phases.items()}
    names = list(next(iter(summaries.values())))
    lines = ["| | " + " | ".join(summaries) + " |", "|---|" + "---:|" * len(summaries)]
    for name in names:
        values = [summary[name] for summary in summaries.values()]
        lines.append(
            f"| {name} | "
            + " | ".join(f"{value:.1f}" if isinstance(value, float) else str(value) for value in values)
            + " |"
        )
    return "\n".join(lines) + "\n"


def _percentile(values: list[float], which: int) -> float:
    return float(np.percentile(values, which)) if values else 0.0


if __name__ == "__main__":
    main()
