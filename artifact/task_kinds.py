"""The kinds of task. The manifest imports them, so numpy loads late."""

from typing import Any, Literal

# One class (softmax), any number of labels (sigmoid), or a number.
Kind = Literal["classification", "multilabel", "regression"]


class TaskKind:
    """Tasks of one kind; defaults are classification's.

    Scores are (rows, outputs). Labels are class numbers (rows,), 0 or 1 (rows, outputs) for multi-label, or numbers
    (rows,).
    """

    has_labels = True  # otherwise a number
    is_exclusive = True  # exactly one label a row
    has_lists = False  # any number of labels a row
    fewest_labels = 2
    label_type: str | None = "int64"  # in metrics; None: as they are
    problem_type = "single_label_classification"  # in transformers

    def predictions(self, scores: Any, threshold: float = 0.0) -> Any:
        """Labels of the rows. A multi-label row has labels from `threshold` on."""
        return scores.argmax(-1)

    def certainty(self, probabilities: Any) -> Any:
        """Probabilities of the predictions: (rows, 1), or (rows, outputs) if multi-label."""
        return probabilities.max(axis=1, keepdims=True)

    def majority(self, labels: Any) -> Any:
        """The most frequent label (of each output if multi-label), or the mean."""
        import numpy as np

        return np.bincount(labels).argmax()


class _MultiLabel(TaskKind):
    is_exclusive, has_lists = False, True
    fewest_labels = 1
    problem_type = "multi_label_classification"

    def predictions(self, scores: Any, threshold: float = 0.0) -> Any:
        return (scores >= threshold).astype("int64")

    def certainty(self, probabilities: Any) -> Any:
        return probabilities.clip(min=1 - probabilities)

    def majority(self, labels: Any) -> Any:
        return self.predictions(labels.mean(axis=0), 0.5)


class _Regression(TaskKind):
    has_labels = is_exclusive = False
    fewest_labels = 0
    label_type = None
    problem_type = "regression"

    def predictions(self, scores: Any, threshold: float = 0.0) -> Any:
        return scores[:, 0]

    def majority(self, labels: Any) -> Any:
        return labels.mean()


KINDS: dict[str, TaskKind] = {"classification": TaskKind(), "multilabel": _MultiLabel(), "regression": _Regression()}
