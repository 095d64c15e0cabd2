"""`kdc compress --audit-labels`: folds, the table of probable errors, resuming, and refusals."""

import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs

from kdc.common.errors import InputError, KdcError
from kdc.pipeline.config.settings import Config
from kdc.pipeline.data.prepared import open_data
from kdc.pipeline.rundir.record import read_record
from kdc.pipeline.training.folds import assign_folds
from kdc.pipeline.training.teachers import train_teacher

FLIPPED = 24
OTHER = {"yes": "no", "no": "yes"}


def config_of(folder: Path, *sets: str, rows: int = 400, pair: bool = True) -> Config:
    base = folder / "teacher"
    if not base.exists():
        tiny_runs.base_model("bert", base)
        tiny_runs.write_rows(folder / "train.csv", rows, seed=1)
        tiny_runs.write_rows(folder / "eval.csv", 60, seed=2)
    return tiny_runs.config_for(folder, base, "data.audit_labels=true", *sets, pair=pair)


def flip(file: Path) -> set[int]:
    """Flip labels of a table; their row numbers, from 1."""
    with file.open(encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)
    flipped = random.Random(0).sample(range(len(rows)), FLIPPED)
    for row in flipped:
        rows[row][2] = OTHER[rows[row][2]]
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return {row + 1 for row in flipped}


def read(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_groups_stay_in_one_fold() -> None:
    groups = np.array([7, 3, 7, 9, 3, 11, 2, 7, 11])
    folds = assign_folds(groups, 3, seed=0)
    assert set(folds.tolist()) == {0, 1, 2}
    assert all(len(set(folds[groups == group].tolist())) == 1 for group in groups)


def test_fewer_groups_than_folds_are_refused() -> None:
    with pytest.raises(InputError, match="too alike"):
        assign_folds(np.array([4, 4, 5, 5]), 3, seed=0)


@pytest.mark.slow
def test_flipped_labels_come_first_and_the_teacher_stays(tmp_path: Path) -> None:
    config = config_of(tmp_path, "teacher.min_steps=240", rows=700, pair=False)
    flipped = flip(tmp_path / "train.csv")
    without = config.model_copy(update={"data": config.data.model_copy(update={"audit_labels": False})})
    tiny_runs.compress(without, until="teacher")
    result = tiny_runs.compress(config, until="label_errors")
    assert result.stages["teacher"].skipped
    table, source = read(tmp_path / "run" / "label_errors.csv"), read(tmp_path / "train.csv")
    for row in table:
        own = source[int(row["row"]) - 1]
        assert (row["text"], row["label"]) == (own["first"], own["label"])
        assert row["suggested_label"] == OTHER[row["label"]]
    found = [int(row["row"]) for row in table]
    assert flipped.issuperset(found[:5])
    judged = flipped & set(open_data(tmp_path / "run" / "data").rows("train")["source_row"][:])
    assert len(judged & set(found)) > 0.8 * len(judged) > 8


@pytest.mark.slow
def test_no_fold_is_trained_on_and_a_finished_one_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[set[int]] = []
    scored: list[set[int]] = []
    cut_off: list[bool] = []

    def watched(source: str, settings: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
        if len(trained) == 1 and not cut_off:
            cut_off.append(True)
            raise KdcError("the power is gone")
        trained.append(set(data.tokens("teacher", "train")["row"][:]))
        return train_teacher(source, settings, data, *args, **kwargs)

    def predicted(model: Any, rows: Any, **how: Any) -> Any:
        scored.append(set(rows.dataset["row"][:]))
        return np.zeros((len(rows), 2), dtype=np.float32)

    monkeypatch.setattr("kdc.pipeline.stages.label_errors.train_teacher", watched)
    monkeypatch.setattr("kdc.pipeline.stages.label_errors.predict", predicted)
    config = config_of(tmp_path)
    with pytest.raises(KdcError, match="the power is gone"):
        tiny_runs.compress(config, until="label_errors")
    tiny_runs.compress(config, until="label_errors")
    assert read_record(tmp_path / "run" / "label_errors") is not None
    assert len(trained) == len(scored) == 3
    every = set.union(*scored)
    assert sum(map(len, scored)) == len(every)
    assert all(learned == every - held_out for learned, held_out in zip(trained, scored, strict=True))


@pytest.mark.parametrize("kind", ["regression", "multilabel"])
def test_rows_without_one_label_of_several_are_refused(kind: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, f"data.kind={kind}", "data.separator=;" if kind == "multilabel" else "run.seed=0")
    if kind == "regression":
        for name, seed in (("train", 1), ("eval", 2)):
            tiny_runs.write_rows(tmp_path / f"{name}.csv", 400, seed=seed, label=lambda yes, generator: float(yes))
    with pytest.raises(InputError, match="judges one label per row"):
        tiny_runs.compress(config, until="data")


def test_a_black_box_is_refused_at_the_start(tmp_path: Path) -> None:
    config = config_of(tmp_path, f"teacher.scores={tmp_path / 'train.csv'}")
    with pytest.raises(InputError, match="this teacher is not trained here") as raised:
        tiny_runs.compress(config, until="data")
    assert "drop --teacher-scores" in str(raised.value)


def test_a_finetuned_teacher_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this teacher is not trained here"):
        tiny_runs.compress(config_of(tmp_path, "teacher.finetuned=true"), until="data")
