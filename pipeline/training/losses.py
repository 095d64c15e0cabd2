"""The distillation loss: pure functions of tensors.

KD-LoRA (Azimi et al. 2024, arXiv 2410.20777, section 3.2), after Hinton et al. 2015 (arXiv 1503.02531):
`alpha * T^2 * KL(softmax(t / T) || softmax(s / T)) + (1 - alpha) * CE(s, y)`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdc.artifact.manifest import Kind


def label_loss(logits: Tensor, labels: Tensor, kind: Kind, factors: Tensor | None = None) -> Tensor:
    """Loss of each row against its label, (batch,): cross-entropy, binary cross-entropy (mean over outputs) or squared
    error, by the kind.

    Args:
        logits: (batch, outputs).
        labels: (batch,) class ids for classification; (batch, outputs) in {0, 1} for multi-label; (batch,) numbers
            for regression.
        kind: of the task.
        factors: of each row's loss, or each output's for multi-label, see `factors_of`; None: 1.
    """
    if kind == "regression":
        return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype), reduction="none")
    if kind == "multilabel":
        loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
        return _weighted(loss, factors).mean(-1)
    return _weighted(F.cross_entropy(logits, labels, reduction="none"), factors)


def teacher_loss(
    logits: Tensor, teacher_logits: Tensor, kind: Kind, temperature: float, factors: Tensor | None = None
) -> Tensor:
    """Divergence of each row from the teacher's softened answer, (batch,), times T^2, which keeps the gradient's size.

    Args:
        logits, teacher_logits: (batch, outputs).
        kind: softmax for classification, a sigmoid for each output for multi-label (mean over outputs), squared
            error without temperature for regression.
        temperature: T > 0.
        factors: as in `label_loss`.
    """
    if kind == "regression":
        return F.mse_loss(logits, teacher_logits, reduction="none").mean(-1)
    if kind == "multilabel":
        target = torch.sigmoid(teacher_logits / temperature)
        cross = F.binary_cross_entropy_with_logits(logits / temperature, target, reduction="none")
        own = F.binary_cross_entropy_with_logits(teacher_logits / temperature, target, reduction="none")
        return _weighted(cross - own, factors).mean(-1) * temperature**2
    student = F.log_softmax(logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    loss = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * temperature**2
    return _weighted(loss, factors)


def _weighted(loss: Tensor, factors: Tensor | None) -> Tensor:
    return loss if factors is None else loss * factors


def factors_of(
    class_weights: Tensor | None,
    labels: Tensor,
    kind: Kind,
    *,
    labelled: Tensor | None = None,
    teacher_logits: Tensor | None = None,
) -> Tensor | None:
    """The factor of each row by weights of classes: the weight of its label; without a label, the expected weight by
    the teacher's probabilities. Multi-label has a factor for each output: its weight if the row has the label, else 1.

    Args:
        class_weights: (outputs,) factor of each class; None gives None, as regression does.
        labels: as in `label_loss`; rows that are not labelled hold any valid value.
        kind: of the task.
        labelled: (batch,) bool; None if all rows are.
        teacher_logits: (batch, outputs); needed if some rows are not labelled.

    Returns:
        (batch,), or (batch, outputs) for multi-label.
    """
    if class_weights is None or kind == "regression":
        return None
    if kind == "multilabel":
        known = torch.where(labels.bool(), class_weights, torch.ones_like(class_weights))
    else:
        known = class_weights[labels]
    if labelled is None or teacher_logits is None:
        return known
    if kind == "multilabel":
        expected = 1 + torch.sigmoid(teacher_logits) * (class_weights - 1)
        return torch.where(labelled[:, None], known, expected)
    return torch.where(labelled, known, torch.softmax(teacher_logits, dim=-1) @ class_weights)


def distillation_loss(
    logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    labelled: Tensor,
    *,
    kind: Kind,
    alpha: float,
    temperature: float,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Mean over rows: `alpha * teacher + (1 - alpha) * label` for labelled ones, the teacher's term alone for others.

    Args:
        logits, teacher_logits: (batch, outputs); without a teacher the labels' term alone counts.
        labels: as in `label_loss`; rows that are not labelled hold any valid value.
        labelled: (batch,) bool.
        kind: of the task.
        alpha: weight of the teacher's term in [0, 1].
        temperature: T > 0.
        class_weights: (outputs,) factor of each class in both terms, see `factors_of`; None: 1.
    """
    factors = factors_of(class_weights, labels, kind, labelled=labelled, teacher_logits=teacher_logits)
    from_labels = label_loss(logits, labels, kind, factors)
    if teacher_logits is None:
        return from_labels.mean()
    from_teacher = teacher_loss(logits, teacher_logits, kind, temperature, factors)
    weight = torch.ones_like(from_labels).masked_fill(labelled, alpha)
    return (weight * from_teacher + (1 - weight) * from_labels).mean()
