"""Forward passes of ONNX files, in turns, one thread: time relative to the first file.

Command: `python benchmarks/passes.py FILE[+fused] [FILE[+fused] ...]`. With `+fused`, ONNX Runtime may fuse residual
connections and LayerNorm. Figures are medians over the fastest call of each round.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime

from kdc.common.machine import cpu
from kdc.serving.engine.providers import SLOW_ON_CPU

_CASES = ((1, 24), (1, 64), (32, 24), (32, 64))  # rows, tokens
_ROUNDS = 15
_TURN_S = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    names = parser.parse_args().files
    sessions = [_open(name) for name in names]
    sys.stdout.write(f"{cpu().model}, onnxruntime {onnxruntime.__version__}\n\n| rows x tokens | first, ms |")
    sys.stdout.write("".join(f" {name} |" for name in names) + "\n|---|---:|" + "---:|" * len(names) + "\n")
    for rows, tokens in _CASES:
        times: list[list[float]] = [[] for _ in names]
        for turn in range(_ROUNDS):
            for index in np.roll(range(len(names)), turn):
                times[index].append(_fastest(sessions[index], rows, tokens))
        ratios = [median(mine / first for mine, first in zip(each, times[0], strict=True)) for each in times]
        cells = "".join(f" {ratio:.2f} |" for ratio in ratios)
        sys.stdout.write(f"| {rows} x {tokens} | {1000 * median(times[0]):.2f} |{cells}\n")


def _open(name: str) -> onnxruntime.InferenceSession:
    file, _, fused = name.partition("+")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    disabled = [] if fused else SLOW_ON_CPU
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(str(Path(file)), options, providers=providers, disabled_optimizers=disabled)


def _fastest(session: onnxruntime.InferenceSession, rows: int, tokens: int) -> float:
    ids = np.random.default_rng(0).integers(1000, 20000, (rows, tokens))
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    feeds = {value.name: values[value.name] for value in session.get_inputs()}
    session.run(None, feeds)
    fastest, end = np.inf, time.perf_counter() + _TURN_S
    while time.perf_counter() < end:
        begin = time.perf_counter()
        session.run(None, feeds)
        fastest = min(fastest, time.perf_counter() - begin)
    return fastest


if __name__ == "__main__":
    main()
