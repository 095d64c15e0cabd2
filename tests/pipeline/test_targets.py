"""The teacher's logits: each under its own row id, and not computed twice."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch

from pipeline import predict
from pipeline.batches import Rows
from pipeline.targets import load_targets, write_logits


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
    """100 rows in windows of 16; their ids are not in the order of the file."""
    monkeypatch.setattr(predict, "_WINDOW", 16)
    random = np.random.default_rng(0)
    ids = [random.integers(1, 50, size=random.integers(1, 20)).tolist() for _ in range(100)]
    order = random.permutation(100).tolist()
    return Rows([datasets.Dataset.from_dict({"row": order, "input_ids": ids, "length": [len(row) for row in ids]})])


def fill(rows: Rows, path: Path, teacher: Teacher, stop_at: int | None = None) -> int:
    def progress(done: int, total: int) -> None:
        if stop_at is not None and done >= stop_at:
            raise KeyboardInterrupt

    return write_logits(teacher, rows, path, pad_id=0, outputs=2, progress=progress)


def test_every_row_has_its_own_logits(rows: Rows, tmp_path: Path) -> None:
    fill(rows, tmp_path / "logits.npy", Teacher())
    logits = load_targets(tmp_path)
    for row in rows.parts[0]:
        assert logits[row["row"]].tolist() == [sum(row["input_ids"]), len(row["input_ids"])]


def test_an_interrupted_pass_goes_on_where_it_was(rows: Rows, tmp_path: Path) -> None:
    path, first, second = tmp_path / "logits.npy", Teacher(), Teacher()
    with pytest.raises(KeyboardInterrupt):
        fill(rows, path, first, stop_at=48)
    assert json.loads((tmp_path / "logits.done").read_text()) == 48
    assert fill(rows, path, second) == 48
    assert (first.seen, second.seen) == (48, 52)
    whole = tmp_path / "whole"
    whole.mkdir()
    fill(rows, whole / "logits.npy", Teacher())
    assert np.array_equal(load_targets(tmp_path), load_targets(whole))


def test_targets_are_memory_mapped(rows: Rows, tmp_path: Path) -> None:
    fill(rows, tmp_path / "logits.npy", Teacher())
    assert isinstance(load_targets(tmp_path), np.memmap)
