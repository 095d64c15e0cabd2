"""How wide the interval of a multi-label difference is, and how often a narrower one would be wrong.

Command: `python benchmarks/width.py [--sets 500] [--texts CSV]`. Students' true drop is the limit. The last three
columns have the percentage that passes: with kdc's interval, with half of its term for unseen rows, and without the
term. Widths are medians of the first 60 sets in which rows differ.

`--texts`: 399 of BANKING77's training rows, with the 48 most frequent words of intents' names as labels. A TF-IDF model
differs from its noisy copy in single labels. The true drop is unknown, so no passes are counted.
"""

import argparse
import math
import sys
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.worlds import MANY, World, source_of, zipf
from kdc.artifact.contract.judgement import quantile_of
from kdc.common.tables import aligned
from kdc.pipeline.config import metrics
from kdc.pipeline.quality import intervals
from kdc.pipeline.quality.unseen import unseen

_WORLDS = (
    *(World("macro_f1", 400, 3.0, share, labels=zipf(48), fate=0.0) for share in (10, 6, 0)),
    World("macro_f1", 400, 3.0, 0, labels=zipf(48), fate=0.0, rare_only=True),
    *(world for world in MANY if world.labels and world.limit == 1),
    World("macro_f1", 800, 1.0, 0, labels=zipf(20), fate=0.0, rare_only=True),
    World("macro_f1", 800, 1.0, 0, losses_only=True, labels=(0.3, 0.1, 0.05)),
)
_MEASURED, _RESAMPLES, _CONFIDENCE = 60, 2000, 0.95
_WORDS, _TRAIN, _EVAL, _SPLITS, _NOISE = 48, 3000, 399, 4, (0.25, 0.4)
_HEADER = ("rows", "labels", "differ", "width / bootstrap's", "passes %", "half", "none")


def width_ratio(truth: NDArray, student: NDArray, teacher: NDArray) -> float:
    """The width of kdc's interval, divided by a percentile bootstrap's; arrays of 0 and 1 (rows, labels)."""
    low, high = intervals.difference(student - 0.5, teacher - 0.5, truth, "multilabel", "macro_f1").interval
    weights = np.random.default_rng(0).multinomial(len(truth), [1 / len(truth)] * len(truth), _RESAMPLES).astype(float)
    drawn = 100 * _gap(truth, student, teacher)(weights)
    ends = np.quantile(drawn, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return (high - low) / float(ends[1] - ends[0])


def lowest_drops(truth: NDArray, student: NDArray, teacher: NDArray) -> tuple[float, float, float]:
    """Lower ends of the intervals in points: with the whole term for unseen rows, half of it, none."""
    low, _ = intervals.difference(student - 0.5, teacher - 0.5, truth, "multilabel", "macro_f1").interval
    quantile, alone, middle = quantile_of(_CONFIDENCE), 0.0, 0.0
    term = max(unseen(truth, each, "macro_f1", groups=None, quantile=quantile)(1.0) for each in (student, teacher))
    if not np.array_equal(student, teacher):
        (alone, _), _, middle = intervals._resampled(_gap, truth, (student, teacher), None, _CONFIDENCE)
    return low, middle - math.hypot(alone - middle, term / 4), alone


def _gap(truth: NDArray, student: NDArray, teacher: NDArray) -> metrics.Scorer:
    score, other_score = (metrics.METRICS["macro_f1"].scorer(truth, each) for each in (student, teacher))
    return lambda weights: score(weights) - other_score(weights)


def line(world: World, sets: int) -> tuple[str, ...]:
    source, random = source_of(world, world.limit), np.random.default_rng([1, zlib.crc32(repr(world).encode())])
    differ, ratios, passed = list[int](), list[float](), np.zeros(3)
    for _ in range(sets):
        truth, teacher, student, _ = source.draw(random)
        student, teacher = (np.asarray(each > 0, dtype=np.int64) for each in (student, teacher))
        differ.append(int((student != teacher).any(axis=1).sum()))
        if differ[-1] and len(ratios) < _MEASURED:
            ratios.append(width_ratio(truth, student, teacher))
        if 100 * float(_gap(truth, student, teacher)(np.ones((1, len(truth))))[0]) >= -world.limit:  # else none passes
            passed += np.array(lowest_drops(truth, student, teacher)) >= -world.limit
    cells = [f"{np.median(differ):.0f}", f"{np.median(ratios):.2f}", *(f"{100 * each / sets:.1f}" for each in passed)]
    return (str(world.rows), str(len(world.labels)), *cells)


def of_texts(path: Path) -> list[tuple[str, ...]]:
    import pandas as pd
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    table = pd.read_csv(path)
    words = [set(name.lower().replace("_", " ").split()) for name in table["category"].astype(str)]
    named = [word for word, _ in Counter(sorted(word for row in words for word in row)).most_common(_WORDS)]
    labels, lines = np.array([[word in row for word in named] for row in words], dtype=np.int64), []
    for split in range(_SPLITS):
        random = np.random.default_rng(split)
        order = random.permutation(len(table))
        held, train = order[:_EVAL], order[_EVAL : _EVAL + _TRAIN]
        texts = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(table["text"].iloc[train])
        model = OneVsRestClassifier(LogisticRegression(C=30))
        model.fit(texts.transform(table["text"].iloc[train]), labels[train])
        scores = model.decision_function(texts.transform(table["text"].iloc[held]))
        for noise in _NOISE:
            student = np.asarray(scores + random.normal(0, noise, scores.shape) > 0, dtype=np.int64)
            teacher = np.asarray(scores > 0, dtype=np.int64)
            ratio = width_ratio(labels[held], student, teacher)
            lines.append((str(_EVAL), str(_WORDS), str(int((student != teacher).any(axis=1).sum())), f"{ratio:.2f}"))
    return [each + ("",) * (len(_HEADER) - len(each)) for each in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=500)
    parser.add_argument("--texts", type=Path, help="CSV with text and category")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    with ProcessPoolExecutor(options.jobs) as pool:
        lines = list(pool.map(partial(line, sets=options.sets), _WORLDS, chunksize=1))
    print(aligned([_HEADER, *lines, *(of_texts(options.texts) if options.texts else [])], left=()))


if __name__ == "__main__":
    main()
