"""Does the memory of `kdc serve` stay flat under minutes of load with rows of all lengths?

Command: `python benchmarks/soak.py --run RUN [--minutes 10]`. Needs wrk. Ends with 1 if resident memory grows or a
request fails.
"""

import argparse
import json
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serving.load import Figures, check_wrk, drive
from benchmarks.serving.process import running
from benchmarks.serving.servers import Dialect, Subject, all_servers
from benchmarks.serving.texts import made_up_row
from kdc.artifact.folder import load_manifest
from kdc.common.errors import KdcError

_STEPS, _CONNECTIONS, _REQUESTS, _ROWS = 20, 16, 3000, (1, 16)
_FLAT = 1.02  # times the memory after warm-up


@dataclass(frozen=True)
class Step:
    minute: float
    resident_mb: float
    figures: Figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/pydocs"), help="directory of a kdc compress")
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    try:
        check_wrk()
        with tempfile.TemporaryDirectory() as scratch:
            steps = _steps(options.run / "artifact", options.minutes, Path(scratch))
    except KdcError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    sys.stdout.write(_table(steps))
    early, late = _settled(steps)
    errors = sum(step.figures.errors for step in steps)
    sys.stdout.write(
        f"\nafter warm-up {early:.1f} MB, at last {late:.1f} MB: {_verdict(early, late)}; errors: {errors}\n"
    )
    sys.exit(0 if late <= _FLAT * early and not errors else 1)


def _steps(artifact: Path, minutes: float, scratch: Path) -> list[Step]:
    manifest = load_manifest(artifact)
    servers, _ = all_servers(Subject(artifact.resolve(), manifest, None, None, scratch))
    server, bodies = servers["kdc"], scratch / "bodies.txt"
    assert server.dialect is not None
    _write(bodies, server.dialect, most=2 * manifest.tokenizer.max_length, is_pair=manifest.task.is_pair)
    steps = []
    with running(server, scratch / "kdc.log") as up:
        for number in range(_STEPS):
            figures = drive(
                up.port, server.dialect.path, bodies, connections=_CONNECTIONS, rows=1, seconds=60 * minutes / _STEPS
            )
            steps.append(Step((number + 1) * minutes / _STEPS, up.resident_mb(), figures))
            sys.stderr.write(f"minute {steps[-1].minute:.1f}: {steps[-1].resident_mb:.1f} MB\n")
    return steps


def _write(file: Path, dialect: Dialect, *, most: int, is_pair: bool) -> None:
    dice = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for number in range(_REQUESTS):
            rows = [
                made_up_row(dice, dice.randint(1, most), 0.5, is_pair=is_pair)
                for _ in range(_ROWS[number % len(_ROWS)])
            ]
            out.write(json.dumps(dialect.body(rows)) + "\n")


def _settled(steps: list[Step]) -> tuple[float, float]:
    quarter = len(steps) // 4
    early, late = steps[quarter : 2 * quarter], steps[-quarter:]
    return median(step.resident_mb for step in early), median(step.resident_mb for step in late)


def _verdict(early: float, late: float) -> str:
    return "flat" if late <= _FLAT * early else f"it grew by {100 * (late / early - 1):.1f} %"


def _table(steps: list[Step]) -> str:
    lines = ["| minute | resident MB | requests/s | p50 ms | p99 ms | errors |", "|---:|---:|---:|---:|---:|---:|"]
    for step in steps:
        seen = step.figures
        lines.append(
            f"| {step.minute:.1f} | {step.resident_mb:.1f} | {seen.requests_per_second:.0f} | {seen.p50_ms:.1f} | "
            f"{seen.p99_ms:.1f} | {seen.errors} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
