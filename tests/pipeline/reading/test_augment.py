"""`augment`: versions of training texts with words left out, under row ids of their own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import tiny_runs
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipeline.reading.augment import without_words, write_augmented
from pipeline.reading.prepared import open_data

TEXTS = ["one two three four five six seven", "short text", "a a b b c c d d", "four words are enough"]


def is_part_of(part: list[str], whole: list[str]) -> bool:
    """Whether the words stand in the whole in the same order."""
    rest = iter(whole)
    return all(word in rest for word in part)


@pytest.mark.parametrize("seed", range(20))
def test_some_words_are_left_out_and_the_rest_keeps_its_order(seed: int) -> None:
    for text in TEXTS:
        words, after = text.split(), without_words(text, np.random.default_rng(seed)).split()
        assert is_part_of(after, words)
        assert (after == words) if len(words) < 4 else (0 < len(after) < len(words))


def test_about_a_seventh_of_the_words_is_left_out() -> None:
    text, random = " ".join(map(str, range(1000))), np.random.default_rng(0)
    left = np.mean([len(without_words(text, random).split()) for _ in range(50)])
    assert left == pytest.approx(850, abs=5)


@pytest.fixture
def rows() -> datasets.Dataset:
    return datasets.Dataset.from_dict({"row": range(4), "text": TEXTS, "label": [0, 1, 0, 1]})


def test_each_row_has_its_versions_under_new_ids(rows: datasets.Dataset, tmp_path: Path) -> None:
    assert write_augmented(rows, tmp_path / "a", copies=3, seed=0, first_row=10) == 9
    found = datasets.load_from_disk(str(tmp_path / "a"))
    assert found["row"][:] == list(range(10, 19))
    assert found.column_names == ["row", "text"]
    origins = Counter(next(t for t in TEXTS if is_part_of(text.split(), t.split())) for text in found["text"][:])
    assert origins == {TEXTS[0]: 3, TEXTS[2]: 3, TEXTS[3]: 3}


def test_a_seed_gives_the_same_texts_again_and_another_seed_others(rows: datasets.Dataset, tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_augmented(rows, tmp_path / name, copies=3, seed=seed, first_row=0)
        found.append(datasets.load_from_disk(str(tmp_path / name))["text"][:])
    assert found[0] == found[1] != found[2]


def test_a_pair_keeps_both_of_its_texts(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"row": [0], "text": ["is it?"], "text_pair": [TEXTS[0]]})
    write_augmented(rows, tmp_path / "a", copies=2, seed=0, first_row=1)
    for row in datasets.load_from_disk(str(tmp_path / "a")):
        assert row["text"] == "is it?"
        assert 0 < len(row["text_pair"].split()) < 7


def test_where_all_texts_are_short_there_is_no_split(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"row": [0, 1], "text": ["one", "two words"]})
    assert write_augmented(rows, tmp_path / "a", copies=2, seed=0, first_row=2) == 0
    assert not (tmp_path / "a").exists()


def test_the_teacher_answers_them_and_the_student_trains_on_them(tmp_path: Path) -> None:
    tiny_runs.write_rows(tmp_path / "train.csv", 240, seed=1)
    tiny_runs.write_rows(tmp_path / "eval.csv", 60, seed=2)
    config = tiny_runs.config_for(
        tmp_path, tiny_runs.base_model("bert", tmp_path / "base"), "targets.augment=1", pair=False
    )
    tiny_runs.compress(config, until="student")
    data = open_data(tmp_path / "run" / "data")
    added, evaluation = data.rows("augmented"), data.rows("eval")
    assert len(added) > 50
    ids = [data.rows(split)["row"][:] for split in ("train", "tune", "augmented", "eval")]
    assert [row for part in ids for row in part] == list(range(sum(map(len, ids))))
    assert not set(added["text"][:]) & set(evaluation["text"][:])
    summary = json.loads((tmp_path / "run" / "student" / "stage.json").read_text())["metrics"]
    assert summary["train_rows"] == len(data.rows("train")) + len(added)

    logits = np.load(tmp_path / "run" / "targets" / "logits.npy")
    folder = str(tmp_path / "run" / "teacher" / "model")
    tokenizer, teacher = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForSequenceClassification.from_pretrained(folder),
    )
    with torch.no_grad():
        for row in added.select(range(5)):
            expected = teacher.eval()(**tokenizer(row["text"], return_tensors="pt")).logits[0].numpy()
            np.testing.assert_allclose(logits[row["row"]], expected, atol=1e-4)
