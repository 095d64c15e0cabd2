"""`kdc serve` against its own limits and its peers: the same student, rows and cores, in turns.

Command: `python benchmarks/serve.py --run RUN [--data GLUE_FOLDER] [--peers PYTHON]`. Needs wrk; without `--data`, rows
are made up. Peers with torch need an environment:

    python3.11 -m venv peers && peers/bin/pip install -r benchmarks/peers/requirements.txt
    python benchmarks/serve.py --run runs/sst2 --data GLUE_FOLDER --peers peers/bin/python

Servers:

- kdc: `kdc serve`.
- uvicorn: the same app without BentoML, the limit over HTTP.
- at-once: `uvicorn` with a model that takes no time (on request).
- raw: forward passes alone, of up to 32 rows of similar length, the limit.
- bentoml-batchable: the same engine behind BentoML's batcher.
- fastapi-pipeline: FastAPI around a transformers pipeline.
- infinity: infinity-emb.
- bento-empty: BentoML without a model, start only.

Loads are named by data set, connections and rows a request: `sst2-32`, `qnli-8x32`. "kdc is" is kdc's rows/s divided by
the server's, the median over rounds. wrk's percentiles include the waits that a stalled connection hides ("coordinated
omission"). With `--own-core`, wrk has the last core, and servers and forward passes have the others. Ends with 1 unless
all marks hold.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serving import report
from benchmarks.serving.load import LOADS, Figures, Load, check_wrk, drive, write_bodies
from benchmarks.serving.process import Running, running
from benchmarks.serving.servers import NAMES, ROOT, Server, Subject, all_servers, base_variables
from benchmarks.serving.texts import SETS, read_rows
from kdc.artifact.folder import load_manifest
from kdc.common.errors import InputError, KdcError
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.tokenizing import Text

_CHECKED = 64
_RAW_BATCH = 32


class Bench:
    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        artifact, model = options.run / "artifact", options.run / "merge" / "model"
        self._scratch = scratch
        self._seconds: float = options.seconds
        self._loads = _chosen(options.loads)
        self._load_core = _leave_a_core() if options.own_core else None
        manifest = load_manifest(artifact)
        is_pair = manifest.task.is_pair
        self._subject = Subject(artifact.resolve(), manifest, model if model.exists() else None, options.peers, scratch)
        self._rows = {name: read_rows(name, options.data, is_pair=is_pair) for name in SETS}
        for name, rows in self._rows.items():
            (scratch / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
        self._asked = [row for name in {load.texts for load in self._loads} for row in self._rows[name][:_CHECKED]]
        self._expected = _labels(artifact, self._asked)
        self.results = report.Results()
        known, left_out = all_servers(self._subject)
        names = [name for name in NAMES if name in options.servers]
        self._servers = [known.get(name) for name in names if name in known or name == "raw"]  # None is `raw`
        self.results.left_out = {name: left_out[name] for name in names if name in left_out}

    def round(self) -> None:
        for number, (_, alike) in enumerate(groupby(self._loads, key=lambda load: load.turn)):
            loads = list(alike)
            for server in self._servers:
                if server is None:
                    for load in loads:
                        self.results.add(load.name, "raw", self._raw(load))
                elif server.dialect is not None or number == 0:
                    self._turn(server, loads)

    def _turn(self, server: Server, loads: list[Load]) -> None:
        results = self.results
        with running(server, self._scratch / f"{server.name}.log") as up:
            results.ready.setdefault(server.name, []).append(up.seconds_to_ready)
            if server.dialect is not None:
                if server.name not in results.agreement:
                    results.agreement[server.name] = self._agreement(up)
                for load in loads:
                    results.add(load.name, server.name, self._drive(up, load))
            results.resident.setdefault(server.name, []).append(up.resident_mb())

    def _drive(self, up: Running, load: Load) -> Figures:
        dialect = up.server.dialect
        assert dialect is not None
        bodies = self._scratch / f"{up.server.name}-{load.texts}-{load.rows}.txt"
        if not bodies.exists():
            write_bodies(bodies, dialect, self._rows[load.texts], load.rows)
        for seconds in (self._seconds / 4, self._seconds):  # warm-up first
            figures = drive(
                up.port,
                dialect.path,
                bodies,
                connections=load.connections,
                rows=load.rows,
                seconds=seconds,
                core=self._load_core,
            )
        if not figures.requests_per_second:
            raise KdcError(f"{up.server.name} answered nothing in time", given=load.name, remedy="more --seconds")
        _say(f"{load.name} {up.server.name}: {figures.rows_per_second:.0f} rows/s, p50 {figures.p50_ms:.2f} ms")
        return figures

    def _raw(self, load: Load) -> Figures:
        batch = min(_RAW_BATCH, load.connections * load.rows)
        script, rows = ROOT / "benchmarks" / "serving" / "raw.py", self._scratch / f"{load.texts}.json"
        command = [sys.executable, str(script), str(self._subject.artifact), str(rows), str(batch), str(self._seconds)]
        done = subprocess.run(command, capture_output=True, text=True, env=base_variables())
        if done.returncode:
            raise KdcError("the loop without a server failed", given=done.stderr.strip())
        figures = Figures(**json.loads(done.stdout))
        _say(f"{load.name} raw: {figures.rows_per_second:.0f} rows/s, p50 {figures.p50_ms:.2f} ms")
        return figures

    def _agreement(self, up: Running) -> float:
        dialect = up.server.dialect
        assert dialect is not None
        found: list[str] = []
        for start in range(0, len(self._asked), 32):
            found += dialect.labels(up.ask(dialect.path, dialect.body(self._asked[start : start + 32])))
        return 100 * sum(map(str.__eq__, found, self._expected)) / len(self._expected)


def main() -> None:
    try:
        results = _measure(_options())
    except KdcError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    if not all(mark.holds for mark in report.marks(results)):
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/pydocs"), help="directory of a kdc compress")
    parser.add_argument("--data", type=Path, help="GLUE's folder")
    parser.add_argument("--peers", type=Path, help="Python of the environment of the peers with torch")
    parser.add_argument("--servers", nargs="+", choices=NAMES, default=[name for name in NAMES if name != "at-once"])
    parser.add_argument("--loads", nargs="+", default=["*"], help=f"names or patterns of: {', '.join(LOADS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=5, help="of each load in each round; requests in work at its end do not count"
    )
    parser.add_argument("--own-core", action="store_true", help="wrk has a core that the servers do not use (Linux)")
    parser.add_argument("--json", action="store_true", help="one JSON object with every round")
    return parser.parse_args()


def _measure(options: argparse.Namespace) -> report.Results:
    check_wrk()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        for number in range(options.rounds):
            _say(f"round {number + 1} of {options.rounds}")
            bench.round()
    text = report.markdown(bench.results)
    sys.stdout.write(json.dumps(report.as_json(bench.results), indent=2) + "\n" if options.json else text)
    return bench.results


def _leave_a_core() -> int:
    """This process and what it starts leave the last core, which is returned."""
    *mine, last = sorted(os.sched_getaffinity(0))
    if not mine:
        raise InputError("wrk cannot have a core of its own", given="1 core", remedy="leave out --own-core")
    os.sched_setaffinity(0, mine)
    return last


def _chosen(patterns: list[str]) -> list[Load]:
    found = [load for name, load in LOADS.items() if any(fnmatch(name, pattern) for pattern in patterns)]
    if not found:
        raise InputError("there is no such load", given=" ".join(patterns), remedy=f"one of {', '.join(LOADS)}")
    return found


def _labels(artifact: Path, rows: list[Text]) -> list[str]:
    engine = Engine.load(artifact, device="cpu")
    names = engine.labels or ("score",)
    return [names[place] for place in engine.predict(rows).argmax(axis=1)]


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
