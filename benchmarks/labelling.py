"""Does `kdc label` keep its promises while the endpoint fails and the command is killed, and is its memory bounded?

Command: `python benchmarks/labelling.py [--kinds chat systemone decisions] [--rows 2000] [--kills 10] [--seed 1]
[--memory-rows 5000 50000]`; 0 rows leave a part out. Linux only. Ends with 1 if a property is broken.

A fifth of the stub's replies are faults (`FAULTS`). Each run has a limit of requests and one of money, and gets `kill
-9` at a random moment. A limit that ends a run is doubled. After a kill the command tells how many calls were under
way: "told" is their sum. A property is broken if:

- lost: a row is neither in OUT nor among the texts without an answer.
- wrong: a label in OUT is not the stub's.
- again: more than "told" whole answers came twice.
- unseen: the ledger has fewer requests than the stub, or over "told" more.
- over: the stub had more requests, or charged more, than a limit allowed.
- memory, without faults: the peak grows by more than `--most-bytes` for each distinct text.
"""

import argparse
import csv
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serving.process import free_port
from benchmarks.serving.stub import started_process
from kdc.common.tables import aligned

FAULTS = ("429", "500", "missing", "cut", "json", "outside", "absurd")
LABELS = ("refund", "delivery", "other")
_SHARE = 0.2  # of the replies
_CONCURRENCY = 16
_DELAY_S, _RETRY_AFTER_S = 0.05, 1  # in `soak`
_LATEST_KILL_S = 3.0  # after the start, or the first call
_USD_FOR_TOKEN = {"input": 1e-6, "output": 2e-6}
_UNDER_WAY = re.compile(r"(\d+) calls were under way")
_KILLED = -signal.SIGKILL


class Soaked(NamedTuple):
    kind: str
    runs: int
    kills: int
    raised: int  # times of doubling
    rows: int  # in OUT
    unanswered: int
    requests: int  # at the stub
    told: int  # see above
    lost: int
    wrong: int
    again: int
    unseen: int
    over: int

    @property
    def holds(self) -> bool:
        return not self.lost and not self.wrong and not self.over and self.again <= self.told >= self.unseen >= 0


class Peak(NamedTuple):
    kind: str
    rows: int
    mb: float
    seconds: float


class Ended(NamedTuple):
    code: int
    said: str  # stdout
    told: str  # stderr
    peak_mb: float  # resident


class Job:
    def __init__(self, folder: Path, kind: str, texts: list[str], port: int) -> None:
        folder.mkdir()
        self.folder, self.output = folder, folder / "out.csv"
        criteria = ", ".join(f'{label} = ""' for label in LABELS)
        (folder / "spec.toml").write_text(
            f'[source]\nkind = "{kind}"\nurl = "http://127.0.0.1:{port}/v1"\nmodel = "stub"\n'
            f"concurrency = {_CONCURRENCY}\nmost_output_tokens = 20\n"
            f"[prices]\ninput = {1e6 * _USD_FOR_TOKEN['input']}\noutput = {1e6 * _USD_FOR_TOKEN['output']}\n"
            '[question]\ntype = "choice"\ninstructions = "What is wanted?"\n'
            f"criteria = {{ {criteria} }}\n"
        )
        with (folder / "in.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([["text"], *([text] for text in texts)])

    def run(self, *options: str, kill: Callable[[int], None] | None = None) -> "Ended":
        """`kill` waits for its moment, then kills the process with this id."""
        command = [sys.executable, "-P", "-m", "kdc", "label", "spec.toml", "in.csv", "out.csv", "--json", *options]
        said, told = self.folder / "stdout", self.folder / "stderr"
        with said.open("w") as out, told.open("w") as err:
            process = subprocess.Popen(command, cwd=self.folder, stdout=out, stderr=err)
        if kill is not None:
            kill(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return Ended(process.returncode, said.read_text(), told.read_text(), usage.ru_maxrss / 1024)

    def requests(self) -> int:
        with sqlite3.connect(f"{self.output}.ledger") as ledger:
            (count,) = ledger.execute("SELECT count(*) FROM attempts").fetchone()
        return int(count)

    def labels(self) -> dict[str, str]:
        with self.output.open(newline="") as stream:
            return {row["text"]: row["label"] for row in csv.DictReader(stream)}

    def unanswered(self) -> int:
        beside = Path(f"{self.output}.unanswered.jsonl")
        return len(beside.read_text().splitlines()) if beside.exists() else 0


@contextmanager
def stub(*options: str) -> Iterator[int]:
    port = free_port()
    process = started_process(port, *options)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(10)


def counted(port: int) -> Any:
    with urlopen(f"http://127.0.0.1:{port}/stub") as reply:
        return json.load(reply)


def soak(folder: Path, kind: str, options: argparse.Namespace) -> Soaked:
    dice = random.Random(f"{options.seed} {kind}")
    texts = [f"message {number} {dice.getrandbits(64):x}" for number in range(options.rows)]
    right = {text: dice.choice(LABELS) for text in texts}
    table = folder / f"{kind}.json"
    table.write_text(json.dumps({text: _sure(label, dice) for text, label in right.items()}))
    faults = [f"--fault={name}={_SHARE / len(FAULTS)}" for name in FAULTS]
    more = (
        "--delay",
        str(_DELAY_S),
        "--table",
        str(table),
        "--seed",
        str(options.seed),
        "--retry-after",
        str(_RETRY_AFTER_S),
    )
    with stub(*more, *faults) as port:
        job = Job(folder / kind, kind, texts, port)
        limits = {"requests": float(options.rows // 2), "usd": 2e-4 * options.rows}
        runs = kills = raised = told = over = 0
        while True:
            runs += 1
            given = ("--max-requests", f"{limits['requests']:.0f}", "--max-usd", str(limits["usd"]))
            ended = job.run(*given, kill=_killer(port, dice) if kills < options.kills else None)
            told += sum(map(int, _UNDER_WAY.findall(ended.told)))
            asked = counted(port)
            requests, usd = sum(asked["targets"].values()), _usd(asked["charged"])
            over += requests > limits["requests"] or usd > limits["usd"]
            if ended.code == _KILLED:
                kills += 1
            elif ended.code:
                raise SystemExit(f"kdc label ended with {ended.code}: {ended.told[-500:]}")
            elif (limit := json.loads(ended.said)["limit"]) is not None:
                limits["requests" if "requests" in limit else "usd"] *= 2
                raised += 1
            else:
                break
        labels, unanswered = job.labels(), job.unanswered()
        return Soaked(
            *(kind, runs, kills, raised, len(labels), unanswered, requests, told),
            lost=len(texts) - len(labels) - unanswered,
            wrong=sum(label != right.get(text) for text, label in labels.items()),
            again=asked["again"],
            unseen=job.requests() - requests,
            over=over,
        )


def _killer(port: int, dice: random.Random) -> Callable[[int], None]:
    """One kill in four is timed from the command's start, the others from its first call."""
    is_from_start, after_s = dice.random() < 0.25, dice.uniform(0, _LATEST_KILL_S)
    before = sum(counted(port)["targets"].values())

    def kill(pid: int) -> None:
        while not is_from_start and not _has_ended(pid) and sum(counted(port)["targets"].values()) == before:
            time.sleep(0.05)
        deadline = time.monotonic() + after_s
        while not _has_ended(pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)

    return kill


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _sure(label: str, dice: random.Random) -> dict[str, float]:
    sure = dice.uniform(0.5, 0.95)
    return {each: sure if each == label else (1 - sure) / (len(LABELS) - 1) for each in LABELS}


def _usd(charged: dict[str, int]) -> float:
    return sum(usd * charged.get(f"{name}_tokens", 0) for name, usd in _USD_FOR_TOKEN.items())


def peak(folder: Path, kind: str, rows: int) -> Peak:
    """The texts are distinct and have about 100 characters."""
    with stub() as port:
        texts = [f"message {number} {'of some words ' * 6}" for number in range(rows)]
        job, began = Job(folder / f"{kind}-{rows}", kind, texts, port), time.monotonic()
        ended = job.run()
        if ended.code or len(job.labels()) < rows:
            raise SystemExit(f"kdc label ended with {ended.code}, {rows} rows: {ended.told[-500:]}")
        return Peak(kind, rows, ended.peak_mb, time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["chat", "systemone", "decisions"])
    parser.add_argument("--rows", type=int, default=2000, help="of the table that is labelled in spite of kills")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1, help="of the kills, the faults and the answers")
    parser.add_argument("--memory-rows", type=int, nargs=2, default=[5_000, 50_000], metavar=("FEW", "MANY"))
    parser.add_argument("--most-bytes", type=float, default=1000, help="growth of the peak memory for a text")
    options = parser.parse_args()
    broken = False
    with tempfile.TemporaryDirectory() as scratch:
        if options.rows:
            soaked = [soak(Path(scratch), kind, options) for kind in options.kinds]
            print(aligned([Soaked._fields, *(tuple(map(str, row)) for row in soaked)]), flush=True)
            broken = any(not row.holds or row.kills < options.kills for row in soaked)
        if options.memory_rows[1]:
            peaks = [[peak(Path(scratch), kind, rows) for rows in options.memory_rows] for kind in options.kinds]
            growth = [1e6 * (many.mb - few.mb) / (many.rows - few.rows) for few, many in peaks]
            lines = [
                (few.kind, f"{few.mb:.1f}", f"{many.mb:.1f}", f"{each:.0f}", f"{many.seconds:.0f}")
                for (few, many), each in zip(peaks, growth, strict=True)
            ]
            head = ("kind", *(f"MB for {rows:,}" for rows in options.memory_rows), "bytes for a text", "seconds")
            print(f"\n{aligned([head, *lines])}")
            broken = broken or max(growth) > options.most_bytes
    print("\na property is broken" if broken else "\nall properties hold")
    sys.exit(broken)


if __name__ == "__main__":
    main()
