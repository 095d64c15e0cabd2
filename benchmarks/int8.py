"""Costs of int8 candidates on the tuning set relative to fp32, as means over finished runs.

Command: `python benchmarks/int8.py RUN [RUN ...]`.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from kdc.pipeline.graphs.int8 import CANDIDATES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="directories of a finished kdc compress")
    runs = [_read(run) for run in parser.parse_args().runs]
    names = {each.name: None for each in CANDIDATES} | {name: None for candidates, _ in runs for name in candidates}
    sys.stdout.write("| candidate | runs | mean difference to fp32 | points lost | latency against fp32 |\n")
    sys.stdout.write("|---|---:|---:|---:|---:|\n")
    for name in names:
        rows = [(candidates[name], fp32) for candidates, fp32 in runs if "tune" in candidates.get(name, {})]
        if not rows:
            continue
        lost = [fp32 - next(iter(row["tune"].values())) for row, fp32 in rows]
        difference, latency = (mean(row[key] for row, _ in rows) for key in ("mean_difference", "latency_against_fp32"))
        each = ", ".join(f"{points:+.2f}" for points in lost)
        sys.stdout.write(
            f"| {name} | {len(rows)} | {difference:.4f} | {mean(lost):+.2f} ({each}) | {latency:.2f} x |\n"
        )


def _read(run: Path) -> tuple[dict[str, Any], float]:
    candidates = json.loads((run / "quantize" / "candidates.json").read_text(encoding="utf-8"))
    student = json.loads((run / "student" / "stage.json").read_text(encoding="utf-8"))["metrics"]["tune"]
    by_name = {re.sub(r"-keep-\d+$", "-keep", name): each for name, each in candidates.items()}
    return by_name, next(iter(student.values()))


if __name__ == "__main__":
    main()
