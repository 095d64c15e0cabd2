"""How often `--slice` calls one of three equally good slices worse, at a level of 5 %: simulated worlds, accuracy.

Command: python benchmarks/slices.py [--worlds 1000]
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdc.pipeline.config.metrics import METRICS
from kdc.pipeline.quality.slices import chances, holm

_RIGHT, _SLICES = 0.7, 3
_SIZES = {"single rows": [1] * 240, "groups of 1 to 9": [1, 2, 3, 9] * 16, "groups of 12": [12] * 20}  # 240 rows


def alarms(sizes: list[int], worlds: int, *, whole: bool) -> float:
    """Share of worlds with an alarm.

    Args:
        sizes: rows of each group, which are right or wrong together.
        whole: a group lies in one slice, else each row in any.
    """
    generator, groups = np.random.default_rng(5), np.repeat(np.arange(len(sizes)), sizes)
    found = 0
    for _ in range(worlds):
        right = (generator.random(len(sizes)) < _RIGHT)[groups]
        places = (
            generator.integers(0, _SLICES, len(sizes))[groups] if whole else generator.integers(0, _SLICES, len(groups))
        )
        score = METRICS["accuracy"].scorer(np.ones(len(right), int), right.astype(int))
        inside = np.stack([places == place for place in range(_SLICES)])
        found += holm(chances(score, inside, groups)).min() <= 0.05
    return found / worlds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=1000)
    worlds = parser.parse_args().worlds
    for name, sizes in _SIZES.items():
        for whole in (True, False):
            where = "whole groups in a slice" if whole else "groups spread over slices"
            print(f"{name}, {where}: {100 * alarms(sizes, worlds, whole=whole):.1f} %", flush=True)


if __name__ == "__main__":
    main()
