"""The distillation loss against a hand-written numpy version."""

from typing import Any

import numpy as np
import pytest
import torch

from kdc.pipeline.config.tasks import custom_task
from kdc.pipeline.training.finetuning import class_weights
from kdc.pipeline.training.losses import LOSSES, distillation_loss

RANDOM = np.random.default_rng(7)
STUDENT = RANDOM.normal(size=(6, 3)) * 3
TEACHER = RANDOM.normal(size=(6, 3)) * 3
LABELS = np.array([0, 2, 1, 1, 0, 2])
MULTI = (RANDOM.random((6, 3)) > 0.5).astype(float)


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values)
    return powers / powers.sum(-1, keepdims=True)


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def kd_by_hand(student: np.ndarray, teacher: np.ndarray, temperature: float) -> np.ndarray:
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * (p * np.log(p / q)).sum(-1)


def test_classification_equals_the_formula_written_in_numpy() -> None:
    alpha, temperature = 0.3, 2.5
    ce = -np.log(softmax(STUDENT)[np.arange(6), LABELS])
    expected = (alpha * kd_by_hand(STUDENT, TEACHER, temperature) + (1 - alpha) * ce).mean()
    loss = distillation_loss(
        torch.tensor(STUDENT),
        torch.tensor(TEACHER),
        torch.tensor(LABELS),
        torch.ones(6, dtype=torch.bool),
        kind="classification",
        alpha=alpha,
        temperature=temperature,
    )
    assert loss.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("weights", [None, [1.0, 5.0, 0.5]])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_multilabel_equals_the_sigmoid_form_written_in_numpy(alpha: float, weights: list[float] | None) -> None:
    """With weights of labels, which multiply the outputs of the labels that a row has, in both terms."""
    temperature = 2.0
    p, q, s = sigmoid(TEACHER / temperature), sigmoid(STUDENT / temperature), sigmoid(STUDENT)
    kd = temperature**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    bce = -(MULTI * np.log(s) + (1 - MULTI) * np.log(1 - s))
    factors = np.where(MULTI == 1, weights or [1.0] * 3, 1.0)
    loss = distillation_loss(
        torch.tensor(STUDENT),
        torch.tensor(TEACHER),
        torch.tensor(MULTI),
        torch.ones(6, dtype=torch.bool),
        kind="multilabel",
        alpha=alpha,
        temperature=temperature,
        class_weights=None if weights is None else torch.tensor(weights, dtype=torch.float64),
    )
    assert loss.item() == pytest.approx((factors * (alpha * kd + (1 - alpha) * bce)).mean(), rel=1e-9)


def test_regression_mixes_squared_errors_to_teacher_and_label() -> None:
    student, teacher, labels = np.array([[1.0], [2.0]]), np.array([[3.0], [2.5]]), np.array([0.0, 4.0])
    expected = np.mean([0.5 * 4.0 + 0.5 * 1.0, 0.5 * 0.25 + 0.5 * 4.0])
    loss = distillation_loss(
        torch.tensor(student),
        torch.tensor(teacher),
        torch.tensor(labels),
        torch.ones(2, dtype=torch.bool),
        kind="regression",
        alpha=0.5,
        temperature=7.0,
    )
    assert loss.item() == pytest.approx(expected)


def test_unlabelled_rows_take_the_teachers_term_alone() -> None:
    labelled = torch.tensor([True, False, True, False, False, True])
    kd = kd_by_hand(STUDENT, TEACHER, 2.0)
    ce = -np.log(softmax(STUDENT)[np.arange(6), LABELS])
    expected = np.where(labelled.numpy(), 0.5 * kd + 0.5 * ce, kd).mean()
    loss = distillation_loss(
        torch.tensor(STUDENT),
        torch.tensor(TEACHER),
        torch.tensor(LABELS),
        labelled,
        kind="classification",
        alpha=0.5,
        temperature=2.0,
    )
    assert loss.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
def test_a_student_that_agrees_with_the_teacher_has_no_teacher_loss(kind: str) -> None:
    logits = torch.tensor(TEACHER)
    assert LOSSES[kind].of_teacher(logits, logits, 3.0).abs().max().item() == pytest.approx(0.0, abs=1e-12)


def test_class_weights_multiply_the_rows_of_their_class() -> None:
    weights, every = torch.tensor([1.0, 5.0, 0.5], dtype=torch.float64), torch.ones(1, dtype=torch.bool)
    for row, label in enumerate(LABELS):
        student, labels = torch.tensor(STUDENT[[row]]), torch.tensor(LABELS[[row]])
        plain, weighted = (
            distillation_loss(
                student, None, labels, every, kind="classification", alpha=0.0, temperature=1.0, class_weights=given
            )
            for given in (None, weights)
        )
        assert torch.allclose(weighted / plain, weights[label])


def test_class_weights_multiply_the_teachers_term_too() -> None:
    """That term is nine tenths of recipe best's loss: weights that left it alone changed next to nothing."""
    weights, every = torch.tensor([1.0, 5.0, 0.5], dtype=torch.float64), torch.ones(len(LABELS), dtype=torch.bool)
    student, teacher, labels = torch.tensor(STUDENT), torch.tensor(TEACHER), torch.tensor(LABELS)

    def loss(rows: list[int], class_weights: torch.Tensor | None) -> float:
        return distillation_loss(
            student[rows],
            teacher[rows],
            labels[rows],
            every[rows],
            kind="classification",
            alpha=0.9,
            temperature=2.0,
            class_weights=class_weights,
        ).item()

    for row, label in enumerate(LABELS.tolist()):
        assert loss([row], weights) == pytest.approx(weights[label].item() * loss([row], None))


def test_a_row_without_a_label_has_the_weight_that_its_teacher_expects() -> None:
    """Would catch: a label that such a row does not have, which decides its weight."""
    weights, teacher = torch.tensor([1.0, 5.0]), torch.log(torch.tensor([[0.25, 0.75]]))
    students, labels = torch.tensor([[0.4, 0.1]]), torch.tensor([0])
    for labelled, weight in ((False, 0.25 * 1 + 0.75 * 5), (True, 1.0)):
        plain, weighted = (
            distillation_loss(
                students,
                teacher,
                labels,
                torch.tensor([labelled]),
                kind="classification",
                alpha=0.5,
                temperature=1.0,
                class_weights=given,
            )
            for given in (None, weights)
        )
        assert (weighted / plain).item() == pytest.approx(weight, rel=1e-5)


def test_weights_of_labels_count_where_a_row_has_the_label() -> None:
    """Would catch: a whole column that is weighed, so that a rare label's many negatives weigh as much as before."""
    weights, labels = torch.tensor([1.0, 5.0]), torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert LOSSES["multilabel"].weights(weights, labels).tolist() == [[1, 5], [1, 1], [1, 1]]
    assert LOSSES["multilabel"].expected_weights(weights, torch.zeros(1, 2)).tolist() == [[1, 3]]


@pytest.mark.parametrize("kind", ["classification", "multilabel"])
def test_balanced_weights_favour_the_rare_class(kind: str) -> None:
    """Would catch: weights that are inverted."""
    labels = [0] * 90 + [1] * 10 if kind == "classification" else [[1.0, 0.0]] * 90 + [[1.0, 1.0]] * 10

    class Data:
        task = custom_task("t", "text", None, "label", kind, ("common", "rare"))  # type: ignore[arg-type]

        def tokens(self, role: str, split: str) -> Any:
            return {"label": labels}

    common, rare = class_weights("balanced", Data()) or ()  # type: ignore[arg-type]
    assert rare == pytest.approx((9 if kind == "classification" else 10) * common)


def test_the_gradient_of_the_teachers_term_keeps_its_size_when_the_temperature_grows() -> None:
    """Hinton et al. 2015, section 2.1: for T large the gradient tends to (s - t) / outputs, whatever T."""
    for temperature in (50.0, 500.0):
        student = torch.tensor(STUDENT - STUDENT.mean(-1, keepdims=True), requires_grad=True)
        teacher = torch.tensor(TEACHER - TEACHER.mean(-1, keepdims=True))
        LOSSES["classification"].of_teacher(student, teacher, temperature).sum().backward()
        assert student.grad is not None
        assert torch.allclose(student.grad, (student.detach() - teacher) / 3, atol=0.15)
