"""Latency of single passes with the threads that the engine chooses, with all and with one; alone and beside a busy
process.

Command: `python benchmarks/threads.py ARTIFACT [--rounds 5]`. Prints p50 and p95 in ms, medians over rounds.
"""

import argparse
import contextlib
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.neighbour import busy_neighbour
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.long_texts import Tokens

_PASSES, _BEFORE = 100, 150  # timed passes, passes before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    seconds: dict[tuple[str, int, str], list[tuple[float, float]]] = {}
    for _ in range(options.rounds):
        for where in ("quiet", "beside a busy process"):
            with busy_neighbour() if where != "quiet" else contextlib.nullcontext():
                for name, threads, lanes in (("chosen", None, 2), ("all", None, 1), ("one", 1, 1)):
                    with Engine.load(options.artifact, device="cpu", threads=threads, lanes=lanes) as engine:
                        for length in (16, 64):
                            row, times = [Tokens([5] * length, [0] * length)], []
                            for _ in range(_BEFORE + _PASSES):
                                began = time.perf_counter()
                                engine.run(row)
                                times.append(time.perf_counter() - began)
                            last = sorted(times[_BEFORE:])
                            told = (1e3 * median(last), 1e3 * last[int(0.95 * len(last))])
                            seconds.setdefault((where, length, name), []).append(told)
    for (where, length, name), figures in sorted(seconds.items()):
        p50, p95 = (median(values) for values in zip(*figures, strict=True))
        print(f"{where:<22} {length} tokens, threads {name:<7} p50 {p50:6.2f} ms   p95 {p95:6.2f} ms")


if __name__ == "__main__":
    main()
