"""Every kind of task answers everything, as scikit-learn, scipy and transformers do it."""

from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from sklearn.dummy import DummyClassifier, DummyRegressor
from transformers.loss.loss_utils import ForSequenceClassificationLoss

from kdc.artifact.manifest import Kind, TaskInfo
from kdc.artifact.task_kinds import KINDS
from kdc.pipeline.config.metrics import as_scored, fitting
from kdc.pipeline.training.losses import LOSSES
from kdc.serving.engine.engine import activate

RANDOM = np.random.default_rng(3)
LOGITS = {
    "classification": RANDOM.normal(size=(40, 3)),
    "multilabel": RANDOM.normal(size=(40, 3)),
    "regression": RANDOM.normal(size=(40, 1)),
}
LABELS: dict[str, Any] = {
    "classification": RANDOM.choice(3, size=40, p=[0.2, 0.2, 0.6]),
    "multilabel": (RANDOM.random((40, 3)) < [0.3, 0.5, 0.9]).astype(np.float32),
    "regression": RANDOM.normal(size=40).astype(np.float32),
}


def probabilities(kind: str) -> np.ndarray:
    return softmax(LOGITS[kind], axis=1) if kind == "classification" else expit(LOGITS[kind])


def test_every_kind_that_an_artifact_may_have_is_registered() -> None:
    assert tuple(KINDS) == tuple(LOSSES) == get_args(Kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_has_as_many_outputs_as_its_kind_says(kind: Kind) -> None:
    labels = tuple("abc") if KINDS[kind].has_labels else ()
    assert TaskInfo(name="t", kind=kind, labels=labels).outputs == LOGITS[kind].shape[1]
    fewest = KINDS[kind].fewest_labels
    TaskInfo(name="t", kind=kind, labels=labels[:fewest])
    with pytest.raises(ValueError, match=f"a {kind} task cannot have"):
        TaskInfo(name="t", kind=kind, labels=labels[: fewest - 1] if fewest else ("a",))


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_the_labels_that_are_more_likely_than_not(kind: Kind) -> None:
    predictions, traits = KINDS[kind].predictions(LOGITS[kind]), KINDS[kind]
    assert predictions.shape == LABELS[kind].shape
    if not traits.has_labels:
        assert (predictions == LOGITS[kind][:, 0]).all()
        return
    likely = probabilities(kind)
    assert activate(LOGITS[kind], kind) == pytest.approx(likely, abs=1e-6)
    assert (traits.predictions(likely, 0.5) == predictions).all()
    for row, prediction in enumerate(predictions):
        if kind == "classification":
            sure = [likely[row][prediction]]
            assert max(likely[row]) == sure[0]
        else:
            sure = [p if given else 1 - p for p, given in zip(likely[row], prediction, strict=True)]
            assert min(sure) >= 0.5
        assert traits.certainty(likely)[row] == pytest.approx(sure)


@pytest.mark.parametrize("kind", KINDS)
def test_the_majority_is_that_of_scikit_learn(kind: Kind) -> None:
    dummy = DummyClassifier(strategy="most_frequent") if KINDS[kind].has_labels else DummyRegressor()
    (labels,) = as_scored(LABELS[kind], kind)
    expected = dummy.fit(LOGITS[kind], labels).predict(LOGITS[kind][:1])[0]
    assert KINDS[kind].majority(labels) == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_labels_is_that_of_transformers(kind: Kind) -> None:
    config: Any = SimpleNamespace(num_labels=LOGITS[kind].shape[1], problem_type=KINDS[kind].problem_type)
    logits, labels = torch.from_numpy(LOGITS[kind]).float(), torch.from_numpy(LABELS[kind])
    own = LOSSES[kind].of_labels(logits, labels)
    assert own.shape == (40, 3 if kind == "multilabel" else 1)
    assert own.mean().item() == pytest.approx(ForSequenceClassificationLoss(labels, logits, config).item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_metrics(kind: Kind) -> None:
    assert len(fitting(kind)) >= 2
