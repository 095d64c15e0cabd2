"""Stage `data`: reads and checks all rows, decides which are trained on, and tokenises them.

Reads: what `Source` names. Writes into the stage's folder:

    task.json, report.json        the task with its label names; counts and warnings
    rows/<split>/                 row, text, text_pair (pairs), label (labelled splits)
    tokens-<role>/<split>/        row, input_ids, token_type_ids (if the model has them), length, label

The splits are train, tune (chosen from the training rows, never trained on), unlabeled, eval, eval_mismatched. Row
numbers are unique over all of them, in that order, from 0.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdc.common.errors import KdcError
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.intake import Intake, read_all, read_split
from kdc.pipeline.data.partition import Part, make_report, split_rows
from kdc.pipeline.data.rows import write_split
from kdc.pipeline.data.sources import SPLITS, Source, file_source, input_fingerprint
from kdc.pipeline.data.tokens import tokenise

if TYPE_CHECKING:
    import datasets

__all__ = ["PreparedData", "Source", "input_fingerprint", "open_data", "prepare", "read_labelled", "tokenise"]


@dataclass(frozen=True)
class PreparedData:
    """A finished data stage.

    Attributes:
        folder: of the stage.
        task: with its label names.
    """

    folder: Path
    task: Task

    def rows(self, split: str) -> datasets.Dataset:
        """The texts of a split, memory-mapped.

        Raises:
            KdcError: the split is not there.
        """
        return _load(self.folder / "rows" / split)

    def tokens(self, role: str, split: str) -> datasets.Dataset:
        """The token ids of a split for "teacher" or "student", memory-mapped.

        Raises:
            KdcError: the split is not there.
        """
        return _load(self.folder / f"tokens-{role}" / split)

    @property
    def eval_splits(self) -> tuple[str, ...]:
        """Evaluation splits; the first decides."""
        return tuple(split for split in ("eval", "eval_mismatched") if self.has(split))

    def has(self, split: str) -> bool:
        """Whether the run has that split."""
        return (self.folder / "rows" / split).is_dir()


def open_data(folder: Path) -> PreparedData:
    """Open what `prepare` and `tokenise` wrote.

    Raises:
        KdcError: the folder is not there or damaged.
    """
    try:
        task = Task.load(folder / "task.json")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KdcError(
            "the data stage is missing or damaged", given=folder, remedy="run again with `--from data`"
        ) from error
    return PreparedData(folder, task)


def _load(folder: Path) -> datasets.Dataset:
    import datasets

    try:
        return datasets.Dataset.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise KdcError(
            "rows of the data stage are missing or damaged", given=folder, remedy="run again with `--from data`"
        ) from error


def prepare(folder: Path, task: Task, source: Source, *, max_train_rows: int | None, seed: int) -> dict[str, Any]:
    """Read, check and split all rows.

    Args:
        folder: of the stage; made if need be.
        task: what the rows hold. Label names that are not given are learned from the training rows, and with
            `source.infer_kind` the kind as well.
        source: where the rows come from.
        max_train_rows: rows to train on at most.
        seed: of the slices, and of `pydocs`.

    Returns:
        what report.json holds: splits (rows and labels of each), held_out, unused_train_rows, duplicates, skipped,
        warnings.

    Raises:
        InputError: lists the mistakes in all files; or there are too few rows to split.
        KdcError: the hub cannot be reached.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix="staging-", ignore_cleanup_errors=True) as staging:
        settled, found = read_all(source, task, Path(staging), seed)
        parts = split_rows(settled, found, max_train_rows, seed)
        report = make_report(settled, found, parts)
        _write(folder, settled, found, parts)
    if settled.kind == "regression":
        numbers = np.asarray(_load(folder / "rows" / "train")["label"][:], dtype=np.float64)
        settled = settled.model_copy(
            update={"center": float(numbers.mean()), "spread": float(numbers.std()) or 1.0}
        )
    settled.save(folder / "task.json")
    (folder / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    return report


def _clear(folder: Path) -> None:
    """Remove what a run that was cut off left here."""
    for pattern in ("staging-*", "rows", "tokens-*"):
        for path in folder.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def read_labelled(
    path: Path, task: Task, *, separator: str | None = None
) -> tuple[list[str] | list[tuple[str, str]], list[Any]]:
    """The rows of one labelled file, checked, in memory.

    Args:
        path: .csv, .tsv, .jsonl, .parquet, or a `save_to_disk` folder of one split.
        task: columns, kind and label names.
        separator: between the labels of a multi-label cell.

    Returns:
        texts (or pairs of texts), and labels as `rows/` holds them: class numbers, multi-hot rows, or numbers.

    Raises:
        InputError: lists the mistakes.
    """
    with tempfile.TemporaryDirectory(prefix="kdc-") as staging:
        read = read_split(file_source("eval", path, task.name), task, Path(staging), separator=separator)
        everything = np.ones(len(read.staged), dtype=np.bool_)
        write_split(read.staged, everything, Path(staging) / "rows", task, first_row=0, labeled=True)
        columns = _load(Path(staging) / "rows").to_dict()
    texts = list(zip(columns["text"], columns["text_pair"], strict=True)) if task.is_pair else columns["text"]
    return texts, columns["label"]


def _write(folder: Path, task: Task, found: dict[str, Intake], parts: dict[str, Part]) -> None:
    first_row = 0
    for name in SPLITS:
        if name in parts and parts[name].chosen.any():
            part = parts[name]
            target = folder / "rows" / name
            staged = found[part.origin].staged
            write_split(staged, part.chosen, target, task, first_row=first_row, labeled=name != "unlabeled")
            first_row += int(part.chosen.sum())
