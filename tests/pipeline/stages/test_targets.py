"""The teacher's logits: each under its own row id, and not computed twice."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import tiny_models
import torch

from kdc.common.errors import KdcError
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.stages import targets
from kdc.pipeline.stages.targets import answer_portions, join_parts
from kdc.pipeline.training import predict
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.environment import Environment
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
    """100 rows in portions of 16; their ids are not in the order of the file."""
    monkeypatch.setattr(predict, "PORTION", 16)
    random = np.random.default_rng(0)
    ids = [random.integers(1, 50, size=random.integers(1, 20)).tolist() for _ in range(100)]
    order = random.permutation(100).tolist()
    return Rows([datasets.Dataset.from_dict({"row": order, "input_ids": ids, "length": [len(row) for row in ids]})])


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
    for row in rows.parts[0]:
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
    assert sorted(part.name for part in parts.iterdir()) == [f"{start:012d}.npz" for start in (0, 16, 32)]
    answer(rows, parts, Teacher(), list(portions(100))[3:])
    assert np.array_equal(joined(rows, tmp_path), expected(rows))


def test_a_row_answered_twice_is_found(rows: Rows, tmp_path: Path) -> None:
    """Ids are the rows' identity: with one doubled, another has no answer."""
    doubled = rows.parts[0].map(lambda row: {"row": 7 if row["row"] == 8 else row["row"]})
    answer(Rows([doubled]), tmp_path / "parts", Teacher(), list(portions(100)))
    with pytest.raises(KdcError, match="2 rows, the first is 7"):
        joined(rows, tmp_path)


@pytest.mark.parametrize("before", [None, "fp32", "bf16"])
def test_a_stage_that_goes_on_answers_in_the_format_that_it_began_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    def faster(environment: Environment, *_: object, **__: object) -> Environment:
        return replace(environment, bf16=True) if environment.bf16 is None else environment  # now it is bf16

    monkeypatch.setattr(targets, "settle", faster)
    tiny_models.build("bert", tmp_path / "teacher")
    task = Task(
        name="t", kind="classification", labels=("a", "b", "c"), text="text", label="label", metrics=("accuracy",)
    )
    ids = [[2, 5, 7, 3]] * 4
    rows = Rows([datasets.Dataset.from_dict({"row": range(4), "input_ids": ids, "length": [4] * 4})])
    (tmp_path / "parts").mkdir()
    if before is not None:
        (tmp_path / "parts" / "number-format").write_text(before)
    environment = Environment(seed=0, bf16=None)
    targets.answer_with(
        str(tmp_path / "teacher"), task, rows, [0], tmp_path / "parts", environment=environment, progress=None
    )
    assert (tmp_path / "parts" / "number-format").read_text() == (before or "bf16")
    join_parts(tmp_path / "parts", tmp_path / "logits.npy", rows=4, outputs=task.outputs)
    answers = torch.from_numpy(np.load(tmp_path / "logits.npy"))
    assert torch.equal(answers, answers.bfloat16().float()) is (before != "fp32")
