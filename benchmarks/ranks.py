"""Training in two processes against one, on the same cores.

Command: `python benchmarks/ranks.py --data GLUE_FOLDER [--rows 3000] [--rounds 3]`. Alternates `kdc compress --until
student` with and without `torchrun --nproc-per-node 2`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_RANKS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(_RANKS)]
    ways = {
        f"1 process, {cores} threads": ([], cores),
        f"{_RANKS} processes, {max(1, cores // _RANKS)} threads each": (torchrun, max(1, cores // _RANKS)),
    }
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(options.rounds):
            for name, (launcher, threads) in ways.items():
                turns[name].append(_run(options, Path(scratch) / "run", launcher, threads))
                sys.stderr.write(f"round {number + 1}, {name}: {turns[name][-1]}\n")
    sys.stdout.write(_table(turns))


def _run(options: argparse.Namespace, out: Path, launcher: list[str], threads: int) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    command = [
        sys.executable,
        *launcher,
        "-m",
        "kdc",
        "compress",
        "--task",
        "sst2",
        "--data",
        str(options.data),
        "--family",
        "minilm",
        "--max-train-rows",
        str(options.rows),
        "--epochs",
        "1",
        "--set",
        "student.min_steps=0",
        "--set",
        "student.allow_majority=true",
        "--until",
        "student",
        "--out",
        str(out),
        "--set",
        "run.device=cpu",
        "--json",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
    )
    if done.returncode:
        sys.exit(done.stderr)
    stages = json.loads(done.stdout)["stages"]
    return {
        "teacher": stages["teacher"]["metrics"]["rows_per_second"],
        "targets": stages["targets"]["metrics"]["rows"] / stages["targets"]["seconds"],
        "student": stages["student"]["metrics"]["rows_per_second"],
        "accuracy": stages["teacher"]["metrics"]["tune"]["accuracy"],
    }


def _table(turns: dict[str, list[dict[str, Any]]]) -> str:
    lines = ["| | teacher, rows/s | targets, rows/s | student, rows/s | teacher's tuning accuracy |"]
    lines.append("|---|---:|---:|---:|---:|")
    for name, runs in turns.items():
        middle = {key: median(run[key] for run in runs) for key in runs[0]}
        lines.append(
            f"| {name} | {middle['teacher']:.0f} | {middle['targets']:.0f} | {middle['student']:.0f} "
            f"| {middle['accuracy']:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
