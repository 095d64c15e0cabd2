"""Rows in memory: every form gives the rows of their file, and what is no table is refused."""

from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

import kdc
from kdc.common.errors import InputError
from kdc.pipeline.config.data_settings import DataSettings
from kdc.pipeline.config.settings import Config
from kdc.pipeline.data.fingerprint import input_fingerprint
from kdc.pipeline.rundir.directory import locked
from kdc.pipeline.rundir.fingerprints import as_json, labelled_rows
from kdc.pipeline.training import ranks

TEXTS, LABELS = ["good; film", "für 5 €\nbad", "so"], ["pos", "neg", "pos"]


def polars_frame() -> Any:
    polars = pytest.importorskip("polars")
    return polars.DataFrame({"other": [1, 2, 3], "text": TEXTS, "label": LABELS})


def dataset() -> datasets.Dataset:
    """Its rows are chosen of more, in another order, and its labels are numbers of names."""
    names = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    rows = {"text": ["unused", *reversed(TEXTS)], "label": [0, *map(["neg", "pos"].index, reversed(LABELS))]}
    return datasets.Dataset.from_dict(rows, features=features).select([3, 2, 1])


FORMS = {
    "lists": lambda: (TEXTS, LABELS),
    "a list of two": lambda: [TEXTS, pd.Series(LABELS)],
    "pandas": lambda: pd.DataFrame({"text": TEXTS, "other": [1, 2, 3], "label": LABELS}, index=[7, 8, 9]),
    "categories": lambda: pd.DataFrame({"text": TEXTS, "label": pd.Categorical(LABELS)}),
    "polars": polars_frame,
    "dataset": dataset,
}


def resolved(out: Path, **settings: Any) -> Config:
    return kdc._resolved(None, None, {"out": out, "text": "text", "teacher": {"model": str(out)}} | settings)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    pd.DataFrame({"text": TEXTS, "label": LABELS}).to_csv(tmp_path / "train.csv", index=False)
    return tmp_path / "train.csv"


@pytest.mark.parametrize("form", sorted(FORMS))
def test_rows_in_memory_have_the_fingerprint_of_their_file(form: str, tmp_path: Path, file: Path) -> None:
    held, named = resolved(tmp_path / "run", train=FORMS[form]()), resolved(tmp_path / "run", train=str(file))
    assert held.data.train == tmp_path / "run" / "given" / "train.parquet"
    assert as_json(labelled_rows(held)) == as_json(labelled_rows(named))


def test_numbers_are_labels_too(tmp_path: Path) -> None:
    pd.DataFrame({"text": TEXTS, "label": [1, 0, 1]}).to_csv(tmp_path / "train.csv", index=False)
    held = resolved(tmp_path / "run", train=(TEXTS, pd.Series([1, 0, 1]).to_numpy()))
    assert input_fingerprint(held.data) == input_fingerprint(DataSettings(train=tmp_path / "train.csv", text="text"))


def test_pairs_and_texts_without_labels_are_rows(tmp_path: Path) -> None:
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    how = {"text": "a", "text_pair": "b", "label": "l"}
    held = resolved(tmp_path / "1", train=(pairs, LABELS), unlabeled=pairs, **how)
    frame = pd.DataFrame({"a": TEXTS, "b": TEXTS[::-1], "l": LABELS})
    frames = resolved(tmp_path / "2", train=frame, unlabeled=frame.drop(columns="l"), **how)
    assert input_fingerprint(held.data) == input_fingerprint(frames.data)


def test_lists_need_no_name_of_a_column_and_the_files_name_wins(tmp_path: Path) -> None:
    (tmp_path / "kdc.toml").write_text(f'[run]\nout = "{tmp_path / "run"}"\n[data]\ntext = "body"\n')
    assert kdc._resolved(tmp_path / "kdc.toml", None, {"train": (TEXTS, LABELS)}).data.text == "body"
    assert kdc._resolved(None, None, {"train": (TEXTS, LABELS), "out": tmp_path / "run"}).data.text == "text"


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ((TEXTS, LABELS[:2]), "train is no table of rows"),
        (3, "train is no table of rows"),
        (TEXTS, "train is no table of rows"),
        (["good", "nice"], "a text is where a list of texts belongs"),
        ((["a", 1, "c"], LABELS), "train is no table of rows"),
        (pd.DataFrame({"txet": TEXTS, "label": LABELS}), "did you mean 'txet'"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, train: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolved(tmp_path / "run", train=train)


def test_only_the_leader_of_several_processes_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    with locked(tmp_path / "run"):  # the leader's
        held = resolved(tmp_path / "run", train=(TEXTS, LABELS))
    assert held.data.train == tmp_path / "run" / "given" / "train.parquet"
    assert not held.data.train.exists()


def test_rows_of_a_run_that_works_are_not_replaced(tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(InputError, match="another run works"):
        resolved(tmp_path / "run", train=(TEXTS, LABELS))
