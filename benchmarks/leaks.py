"""How much a held-out slice of SST-2's training file shares with the remaining rows.

Command: `python benchmarks/leaks.py --data GLUE_FOLDER`. Keeps equal texts together; then also rows that contain one
another, as `kdc` does.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdc.common.tables import aligned
from kdc.pipeline.data.overlap import connect, near_rows, nearest, runs_of
from kdc.pipeline.data.splits import pick_slice

_HELD_OUT = 6000


def read(path: Path) -> tuple[list[str], np.ndarray]:
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return [row[0] for row in rows], np.array([int(row[1]) for row in rows])


def main() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    texts, labels = read(options.data / "SST-2" / "train.tsv")
    dev, dev_labels = read(options.data / "SST-2" / "dev.tsv")
    numbers = np.array(
        [int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=7).digest(), "little") for text in texts]
    )
    near = near_rows(runs_of(texts))
    table: list[tuple[str, ...]] = [("kept together", "near a row that is left, %", "TF-IDF on the slice", "on dev")]
    for name, units in (("equal texts", connect(numbers)), ("near ones too", connect(numbers, near=near))):
        held_out = pick_slice(units, labels, np.ones(len(texts), dtype=np.bool_), _HELD_OUT, options.seed)
        inside, left = ([texts[place] for place in np.flatnonzero(mask)] for mask in (held_out, ~held_out))
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(left)
        model = LogisticRegression(C=10, max_iter=300).fit(words.transform(left), labels[~held_out])
        leaks = nearest(runs_of(inside), runs_of(left)) >= 0
        scores = [
            100 * model.score(words.transform(of), truth)
            for of, truth in ((inside, labels[held_out]), (dev, dev_labels))
        ]
        table.append((name, f"{100 * leaks.mean():.0f}", *(f"{score:.1f}" for score in scores)))
    print(aligned(table, left=(0,)))


if __name__ == "__main__":
    main()
