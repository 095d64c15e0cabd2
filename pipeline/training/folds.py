"""Folds of the training rows, each scored by a model of the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from kdc.common.errors import InputError
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.config.training_settings import TeacherSettings
from kdc.pipeline.data.overlap import Ints, Mask
from kdc.pipeline.data.prepared import PreparedData

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class PartOfTraining(PreparedData):
    kept: Ints = field(kw_only=True)  # indices of training rows

    def tokens(self, role: str, split: str) -> datasets.Dataset:
        rows = super().tokens(role, split)
        return rows.select(self.kept) if split == "train" else rows


def part_of(data: PreparedData, chosen: Mask) -> PartOfTraining:
    return PartOfTraining(data.folder, data.task, data.vocabulary, kept=np.flatnonzero(chosen))


def assign_folds(groups: Ints, count: int, seed: int) -> Ints:
    """Each row's fold, (rows,). Groups stay whole.

    Raises:
        InputError: fewer groups than folds.
    """
    _, group = np.unique(groups, return_inverse=True)
    distinct = int(group.max()) + 1
    if distinct < count:
        raise InputError(
            "the training rows are too alike to judge some by others",
            given=f"{distinct} independent groups of rows, and {count} are needed",
            remedy="drop --audit-labels, or give more rows",
        )
    return np.random.default_rng(seed).permutation(distinct)[group] % count


def check_audit(teacher: TeacherSettings, task: Task) -> None:
    """Raise InputError if the teacher is not fine-tuned here, or a row has not one label of several."""
    if teacher.scores is not None or teacher.finetuned:
        given = "teacher.finetuned" if teacher.scores is None else "--teacher-scores"
        raise InputError(
            "--audit-labels trains teachers on parts of the rows, and this teacher is not trained here",
            given=given,
            remedy=f"drop {given} and name a pretrained --teacher, or drop --audit-labels",
        )
    if not (task.traits.has_labels and task.traits.is_exclusive):
        raise InputError(
            "--audit-labels judges one label per row",
            given=f"data.kind={task.kind}",
            remedy="drop --audit-labels",
        )
