"""The distillation loss: `alpha * T^2 * KL(softmax(t / T) || softmax(s / T)) + (1 - alpha) * CE(s, y)`.

See KD-LoRA (Azimi et al. 2024, arXiv 2410.20777, section 3.2) and Hinton et al. 2015, arXiv 1503.02531.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdc.artifact.task_kinds import Kind


class Losses:
    """Losses before they are averaged; the defaults are for classification.

    Logits are (batch, outputs). Labels are (batch,) class ids, (batch, outputs) in {0, 1} for multi-label, or (batch,)
    numbers. Class weights are (outputs,). Results are (batch, 1), for multi-label (batch, outputs).
    """

    def of_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")[:, None]

    def of_teacher(self, logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        """Divergence from the softened teacher. T^2 preserves gradient size."""
        student = F.log_softmax(logits / temperature, dim=-1)
        teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
        divergence = F.kl_div(student, teacher, reduction="none", log_target=True)
        return divergence.sum(-1, keepdim=True) * temperature**2

    def weights(self, class_weights: Tensor, labels: Tensor) -> Tensor:
        """Weights of the labels. An absent label of a multi-label row weighs 1."""
        return class_weights[labels][:, None]

    def expected_weights(self, class_weights: Tensor, teacher_logits: Tensor) -> Tensor:
        """`weights` by the teacher, for unlabelled rows."""
        return (torch.softmax(teacher_logits, dim=-1) @ class_weights)[:, None]


class _MultiLabel(Losses):
    def of_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")

    def of_teacher(self, logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        target = torch.sigmoid(teacher_logits / temperature)
        cross, own = (self.of_labels(side / temperature, target) for side in (logits, teacher_logits))
        return (cross - own) * temperature**2

    def weights(self, class_weights: Tensor, labels: Tensor) -> Tensor:
        return torch.where(labels.bool(), class_weights, torch.ones_like(class_weights))

    def expected_weights(self, class_weights: Tensor, teacher_logits: Tensor) -> Tensor:
        return 1 + torch.sigmoid(teacher_logits) * (class_weights - 1)


class _Regression(Losses):
    def of_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.mse_loss(logits, labels.to(logits.dtype)[:, None], reduction="none")

    def of_teacher(self, logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        return F.mse_loss(logits, teacher_logits, reduction="none")


LOSSES: dict[str, Losses] = {"classification": Losses(), "multilabel": _MultiLabel(), "regression": _Regression()}


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
    """Mean over the batch; unlabelled rows have only the teacher's term.

    Args:
        labels: any valid value in unlabelled rows.
        labelled: (batch,) bool.
        class_weights: None for regression.

    Other shapes are as in `Losses`.
    """
    losses = LOSSES[kind]
    factors: Tensor | float = 1.0 if class_weights is None else losses.weights(class_weights, labels)
    if class_weights is not None and teacher_logits is not None:
        factors = torch.where(labelled[:, None], factors, losses.expected_weights(class_weights, teacher_logits))
    from_labels = (losses.of_labels(logits, labels) * factors).mean(-1)
    if teacher_logits is None:
        return from_labels.mean()
    from_teacher = (losses.of_teacher(logits, teacher_logits, temperature) * factors).mean(-1)
    weight = torch.ones_like(from_labels).masked_fill(labelled, alpha)
    return (weight * from_teacher + (1 - weight) * from_labels).mean()
