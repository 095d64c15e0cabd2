"""The teacher's logits: each under its own row id, and not computed twice."""

from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch

from kdc.pipeline.stages.targets import answer_portions, join_parts
from kdc.pipeline.training import predict
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.predict import portions


class Teacher(torch.nn.Module):
    """Answers a row with the sum of its ids and its length; counts the rows it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = 0

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        self.seen += len(input_ids)
        total = (input_ids * attention_mask).sum(1)
        return SimpleNamespace(logits=torch.stack([total, attention_mask.sum(1)], dim=1).float())


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    """100 rows in portions of 16."""
    monkeypatch.setattr(predict, "PORTION", 16)
    random = np.random.default_rng(0)
    ids = [random.integers(1, 50, size=random.integers(1, 20)).tolist() for _ in range(100)]
    columns = {"row": range(100), "input_ids": ids, "length": [len(row) for row in ids]}
    return Rows([datasets.Dataset.from_dict({name: list(values) for name, values in columns.items()})])


def answer(rows: Rows, parts: Path, teacher: Teacher, starts: list[int], stop_at: int | None = None) -> None:
    def progress(done: int, total: int, /, **_: object) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    parts.mkdir(exist_ok=True)
    answer_portions(teacher, rows, starts, parts, pad_id=0, progress=progress)


def joined(rows: Rows, folder: Path) -> np.ndarray:
    join_parts(folder / "parts", folder / "logits.npy", rows=len(rows), outputs=2)
    return np.load(folder / "logits.npy")


def expected(rows: Rows) -> np.ndarray:
    logits = np.full((len(rows), 2), np.nan, dtype=np.float32)
    for row in rows.dataset:
        logits[row["row"]] = [sum(row["input_ids"]), len(row["input_ids"])]
    return logits


def test_every_row_has_its_own_logits(rows: Rows, tmp_path: Path) -> None:
    answer(rows, tmp_path / "parts", Teacher(), list(portions(100)))
    assert np.array_equal(joined(rows, tmp_path), expected(rows))


@pytest.mark.parametrize("ranks", [2, 3, 9])
def test_shares_of_several_processes_join_to_the_same(rows: Rows, tmp_path: Path, ranks: int) -> None:
    """100 rows are 7 portions, of which no number of processes here has the same share."""
    teachers = [Teacher() for _ in range(ranks)]
    for rank, teacher in enumerate(teachers):
        answer(rows, tmp_path / "parts", teacher, list(portions(100))[rank::ranks])
    assert sum(teacher.seen for teacher in teachers) == 100
    assert np.array_equal(joined(rows, tmp_path), expected(rows))


def test_an_interrupted_pass_keeps_its_finished_portions(rows: Rows, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        answer(rows, parts, Teacher(), list(portions(100)), stop_at=3)
    assert sorted(part.name for part in parts.iterdir()) == [f"{start:012d}.npy" for start in (0, 16, 32)]
    answer(rows, parts, Teacher(), list(portions(100))[3:])
    assert np.array_equal(joined(rows, tmp_path), expected(rows))
