"""What a run knows that its contract is judged by: answers to the evaluation rows and how often these were looked at,
and scores on the tuning slice."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdc.pipeline.data.prepared import PreparedData, digest, texts_of
from kdc.pipeline.quality.comparison import Other
from kdc.pipeline.quality.judging import EvaluationAnswers
from kdc.pipeline.results.artifact import Pair, QuantizeResult
from kdc.pipeline.rundir.directory import look_at
from kdc.pipeline.rundir.files import ALL_LOGITS


def answers_of(data: PreparedData, evaluated: Path, baseline: str | None) -> EvaluationAnswers:
    """What stage `evaluate` kept in its folder of all models on the evaluation split, and the baseline that is better
    than the teacher, if one is."""
    split = data.eval_splits[0]
    rows, logits = data.rows(split), read_logits(evaluated, split)
    better = None if baseline is None else Other(baseline, logits[baseline])
    labels, groups = np.asarray(rows["label"][:]), data.groups(split)
    return EvaluationAnswers(texts_of(rows), labels, logits["teacher"], logits, groups, better)


def read_logits(evaluated: Path, split: str) -> dict[str, NDArray[np.float32]]:
    """The logits (rows, outputs) of all models on a split, by model, from the folder of stage `evaluate`."""
    with np.load(evaluated / ALL_LOGITS) as arrays:
        return {name.removeprefix(f"{split}/"): arrays[name] for name in arrays if name.startswith(f"{split}/")}


def tuning_scores(
    student: float, quantized: QuantizeResult, pairs: Mapping[str, Pair], metric: str
) -> dict[str, float]:
    """The scores of the variants on the tuning slice, of which the student's is known."""
    scores = {"fp32": student, "fp16": student}  # which differs by rounding
    int8 = quantized.candidates.get(quantized.winner or "")
    if int8 is not None and int8.tune is not None:
        scores["int8"] = int8.tune[metric]
    return scores | {name: pair.score for name, pair in pairs.items()}


def look_of(data: PreparedData, root: Path, answers: NDArray[np.generic]) -> int:
    """Which look at the evaluation rows it is, to judge a model by its answers; counted in a run's directory."""
    rows = data.rows(data.eval_splits[0])
    fingerprint = hashlib.sha256(b"".join(map(digest, texts_of(rows))))
    fingerprint.update(np.asarray(rows["label"][:]).tobytes())
    return look_at(root, fingerprint.digest(), answers)
