"""`kdc predict` against bare forward passes and torch, and its memory by number of rows.

Command: `python benchmarks/predict.py --run RUN [--data GLUE_FOLDER] [--rows 10000 100000 1000000]`. Rows repeat
SST-2's (pairs: QNLI's), or are made up with the same lengths. On the first of `--rows`, in turns:

- predict: `kdc predict`, CSV to Parquet, the whole command.
- raw: tokenised rows of similar length in batches of 32, the limit.
- pipeline: a transformers pipeline over the student in torch, batches of 32.
- map: `datasets.map` with the student in torch, batches of 32.

Then `kdc predict` for each of `--rows`. If Ray is installed, also 1 and 2 actors of one thread on `--ray-rows` rows;
rows/s count from the first actor's start.
"""

import argparse
import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serving.texts import read_rows
from kdc.artifact.folder import load_manifest
from kdc.serving.engine.tokenizing import Text

ROOT = Path(__file__).resolve().parent.parent
_TORCH = ROOT / "benchmarks" / "peers" / "offline.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/pydocs"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-rows", type=int, default=2000, help="of a turn of pipeline and map: they are slow")
    parser.add_argument("--ray-rows", type=int, default=100_000, help="of a turn by Ray: its start takes seconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        _measure(options, Path(scratch))


def _measure(options: argparse.Namespace, scratch: Path) -> None:
    artifact, model = options.run / "artifact", options.run / "merge" / "model"
    task = load_manifest(artifact).task
    texts = read_rows("qnli" if task.is_pair else "sst2", options.data, is_pair=task.is_pair)
    names = [task.text, *([task.text_pair] if task.text_pair else [])]
    first = options.rows[0]
    tables = {count: _table(scratch / f"{count}.csv", names, texts, count) for count in options.rows}
    (scratch / "peers.json").write_text(json.dumps(list(islice(cycle(texts), options.peer_rows))), encoding="utf-8")
    (scratch / "raw.json").write_text(json.dumps(texts), encoding="utf-8")
    found: dict[str, list[float]] = {"raw": [], "predict": [], "pipeline": [], "map": []}
    for number in range(options.rounds):
        raw = [str(ROOT / "benchmarks/serving/raw.py"), str(artifact), str(scratch / "raw.json"), "32", "5"]
        found["raw"].append(_json(raw)["rows_per_second"])
        found["predict"].append(first / _predict(artifact, tables[first], scratch)["seconds"])
        for peer in ("pipeline", "map"):
            if model.exists():
                found[peer].append(
                    _json([str(_TORCH), peer, str(model), str(scratch / "peers.json")])["rows_per_second"]
                )
        sys.stderr.write(f"round {number + 1}: { ({name: round(each[-1]) for name, each in found.items() if each}) }\n")
    sys.stdout.write("| | rows/s | predict is |\n|---|---:|---:|\n")
    for name, speeds in found.items():
        if speeds:
            ratio = median(mine / other for mine, other in zip(found["predict"], speeds, strict=True))
            sys.stdout.write(f"| {name} | {median(speeds):.0f} | {ratio:.2f} x |\n")
    sys.stdout.write("\n| rows | s | rows/s | most resident MB |\n|---:|---:|---:|---:|\n")
    for count, table in tables.items():
        one = _predict(artifact, table, scratch)
        speed = count / one["seconds"]
        sys.stdout.write(f"| {count:,} | {one['seconds']:.1f} | {speed:.0f} | {one['resident_mb']:.0f} |\n")
    if importlib.util.find_spec("ray") is None:
        sys.stdout.write("\nRay is not installed: pip install 'kdc[ray]'\n")
    else:
        table = _table(scratch / "ray.csv", names, texts, options.ray_rows)
        _measure_ray(artifact, table, options.ray_rows, scratch, options.rounds)


def _measure_ray(artifact: Path, table: Path, count: int, scratch: Path, rounds: int) -> None:
    ways = {}
    for cores in (1, 2):
        ways[f"local, {cores} threads"] = ["--threads", str(cores)]
        ways[f"Ray, {cores} actors"] = ["--engine", "ray", "--actors", str(cores), "--threads", "1"]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, more in ways.items():
            found[name].append(_predict(artifact, table, scratch, more))
    sys.stdout.write(f"\n| {count:,} rows | whole command, s | rows/s inside |\n|---|---:|---:|\n")
    for name, each in found.items():
        seconds, inside = (median(one[what] for one in each) for what in ("seconds", "inside"))
        sys.stdout.write(f"| {name} | {seconds:.1f} | {inside:.0f} |\n")


def _table(path: Path, names: list[str], texts: list[Text], count: int) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        writer.writerows([row] if isinstance(row, str) else row for row in islice(cycle(texts), count))
    return path


def _predict(artifact: Path, table: Path, scratch: Path, more: Sequence[str] = ()) -> dict[str, float]:
    out = scratch / "out.parquet"
    shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "kdc",
        "predict",
        str(artifact),
        str(table),
        str(out),
        "--device",
        "cpu",
        "--json",
        *more,
    ]
    script = (
        "import json, resource, subprocess, sys, time\n"
        "began = time.perf_counter()\n"
        "told = subprocess.run(sys.argv[1:], check=True, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout\n"
        "seconds, inside = time.perf_counter() - began, json.loads(told)['rows_per_second']\n"
        "most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6\n"
        "print(json.dumps({'seconds': seconds, 'resident_mb': most, 'inside': inside}))"
    )
    return _json(["-c", script, *command])


def _json(arguments: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
