"""The distillation loss: `alpha * T^2 * KL(softmax(t / T) || softmax(s / T)) + (1 - alpha) * CE(s, y)`.

See KD-LoRA (Azimi et al. 2024, arXiv 2410.20777, section 3.2) and Hinton et al. 2015, arXiv 1503.02531.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdc.artifact.manifest import Kind


def label_loss(logits: Tensor, labels: Tensor, kind: Kind, factors: Tensor | None = None) -> Tensor:
    """Each row's cross-entropy, mean binary cross-entropy or squared error, (batch,).

    Args:
        logits: (batch, outputs).
        labels: (batch,) class ids; multi-label: (batch, outputs) in {0, 1}; regression: (batch,) numbers.
        factors: see `factors_of`.
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
    """Each row's divergence from the softened teacher, (batch,): softmax, mean of sigmoids if multi-label, or squared
    error without T for regression. T^2 preserves gradient size.

    Args:
        logits, teacher_logits: (batch, outputs).
        factors: see `factors_of`.
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
    """Loss factors (batch,): the label's weight; for unlabelled rows, the expected weight by the teacher.

    Multi-label: (batch, outputs), the weight if the label is present, else 1.

    Args:
        class_weights: (outputs,); None gives None, as does regression.
        labels: as in `label_loss`, any valid value in unlabelled rows.
        labelled: (batch,) bool; None: all.
        teacher_logits: (batch, outputs).
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
    """Mean of `alpha * teacher + (1 - alpha) * label`; unlabelled rows have only the first term.

    Args:
        logits, teacher_logits: (batch, outputs); without a teacher, labels alone count.
        labels, labelled, class_weights: as in `factors_of`.
    """
    factors = factors_of(class_weights, labels, kind, labelled=labelled, teacher_logits=teacher_logits)
    from_labels = label_loss(logits, labels, kind, factors)
    if teacher_logits is None:
        return from_labels.mean()
    from_teacher = teacher_loss(logits, teacher_logits, kind, temperature, factors)
    weight = torch.ones_like(from_labels).masked_fill(labelled, alpha)
    return (weight * from_teacher + (1 - weight) * from_labels).mean()
