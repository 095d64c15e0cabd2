"""A table that `kdc label` wrote: who labelled the rows that judge, and what is said of it."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
from tiny_models import WORDS
from tiny_runs import base_model, config_for

from kdc.artifact.folder import load_manifest
from kdc.artifact.inspection import render
from kdc.common.errors import InputError
from kdc.pipeline.compress import render as printed
from kdc.pipeline.config.data_settings import DataSettings
from kdc.pipeline.config.labelled import read_description
from kdc.pipeline.config.tasks import custom_task
from kdc.pipeline.data.prepared import PreparedData, open_data, prepare
from kdc.pipeline.data.scores import scores_of_rows
from kdc.pipeline.report.page import write_report
from kdc.pipeline.results.data import DataReport

FACTS = {"text": "text", "model": "large-1", "how": {"logprobs": 400, "votes": 100}, "usd": 0.25}
FACTS |= {"p50_ms": 812.0, "p95_ms": 1930.0}
FACTS["question"] = {
    "type": "choice",
    "instructions": "Is it?",
    "options": [{"name": "no", "description": "no"}, {"name": "yes", "description": "yes"}],
    "template": None,
    "label": None,
}


def table(path: Path, rows: list[tuple[str, str, str]], **facts: Any) -> Path:
    """Texts, labels and `how`, as `kdc label` writes them."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label", "no", "yes", "how"])
        for text, label, how in rows:
            writer.writerow([text, label, 0.9 if label == "no" else 0.1, 0.9 if label == "yes" else 0.1, how])
    Path(f"{path}.label.json").write_text(json.dumps(FACTS | facts), encoding="utf-8")
    return path


def rows_by(who: str, how: str, count: int) -> list[tuple[str, str, str]]:
    return [(f"{who} {number}", ("no", "yes")[number % 2], how) for number in range(count)]


def mixed(models: int, people: int) -> list[tuple[str, str, str]]:
    return rows_by("model", "logprobs", models) + rows_by("person", "people", people)


def prepared(folder: Path, train: Path, *, judge: bool = True, **more: Any) -> tuple[PreparedData, DataReport]:
    task = custom_task("own", "text", None, "label", "classification")
    report = prepare(folder / "data", task, DataSettings(train=train, **more), seed=0, people_judge=judge)
    return open_data(folder / "data"), report


def authors(data: PreparedData, split: str) -> list[str]:
    return sorted({text.split()[0] for text in data.rows(split)["text"][:]})


def test_a_tenth_of_the_rows_all_by_people_judge(tmp_path: Path) -> None:
    data, report = prepared(tmp_path, table(tmp_path / "t.csv", mixed(1000, 500)))
    assert (authors(data, "eval"), len(data.rows("eval")), report.labels) == (["person"], 150, "people")
    assert authors(data, "tune") == ["person"]  # 350 are left, and 300 are enough
    assert authors(data, "train") == ["model", "person"]


def test_the_tuning_set_is_mixed_if_people_labelled_too_few_rows(tmp_path: Path) -> None:
    data, report = prepared(tmp_path, table(tmp_path / "t.csv", mixed(1000, 200)))
    assert (authors(data, "eval"), report.labels) == (["person"], "people")
    assert authors(data, "tune") == ["model", "person"]


@pytest.mark.parametrize(("people", "judge"), [(99, True), (500, False), (0, True)])
def test_otherwise_the_models_labels_judge_and_that_is_said(tmp_path: Path, people: int, judge: bool) -> None:
    """Too few rows by people, a teacher that would repeat people's labels, or none."""
    data, report = prepared(tmp_path, table(tmp_path / "t.csv", mixed(1500, people)), judge=judge)
    assert (authors(data, "eval"), authors(data, "tune"), report.labels) == (["model"], ["model"], "model:large-1")
    assert ("person" in authors(data, "train")) is bool(people)
    assert any(f"{people} rows have people's labels" in warning for warning in report.warnings) is bool(people)


def test_a_text_that_people_judge_by_is_not_trained_on_with_the_models_label(tmp_path: Path) -> None:
    people = rows_by("person", "people", 150)
    again = [(text, label, "votes") for text, label, _ in people]
    data, _ = prepared(tmp_path, table(tmp_path / "t.csv", rows_by("model", "logprobs", 1000) + people + again))
    judging = set(data.rows("eval")["text"][:])
    assert len(data.rows("eval")) == len(judging) >= 100
    assert not judging & {*data.rows("train")["text"][:], *data.rows("tune")["text"][:]}


def test_an_evaluation_file_is_judged_by_its_people(tmp_path: Path) -> None:
    train = table(tmp_path / "t.csv", mixed(600, 0))
    given = [(f"eval {text}", label, how) for text, label, how in mixed(300, 120)]
    data, report = prepared(tmp_path, train, eval=table(tmp_path / "e.csv", given))
    assert {text.split()[1] for text in data.rows("eval")["text"][:]} == {"person"}
    assert (len(data.rows("eval")), report.labels) == (120, "people")


def test_of_other_tables_nothing_is_claimed(tmp_path: Path) -> None:
    train = table(tmp_path / "t.csv", mixed(400, 300))
    Path(f"{train}.label.json").unlink()
    data, report = prepared(tmp_path, train)
    assert (report.labels, report.replaced, authors(data, "eval")) == (None, None, ["model", "person"])


def test_scores_that_repeat_peoples_labels_judge_no_student(tmp_path: Path) -> None:
    train = table(tmp_path / "t.csv", mixed(1000, 500))
    assert len(scores_of_rows(train, prepared(tmp_path, train, judge=False)[0])) == 1500
    with pytest.raises(InputError, match="always be right"):
        scores_of_rows(train, prepared(tmp_path, train)[0])


@pytest.mark.parametrize(
    "facts",
    [
        {"model": "a\nb"},
        {"model": "\x1b[2J"},
        {"model": "a" * 201},
        {"usd": -1},
        {"usd": float("nan")},
        {"p50_ms": "soon"},
        {"how": {"votes": -1}},
        {"more": "x" * (1 << 20)},
    ],
)
def test_a_hostile_description_is_refused(tmp_path: Path, facts: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="damaged"):
        read_description(table(tmp_path / "t.csv", [], **facts))


def test_dollars_are_of_a_million_answered_texts(tmp_path: Path) -> None:
    known, free = (read_description(table(tmp_path / "t.csv", [], **usd)) for usd in ({}, {"usd": 0}))
    assert known is not None
    assert known.usd_per_million_texts == pytest.approx(500.0)
    assert free is not None
    assert free.usd_per_million_texts is None


def test_a_run_says_whose_labels_its_scores_are_by(tmp_path: Path) -> None:
    rows = [(f"{w} {x} {y}", ("no", "yes")[w == "w1"], "votes") for w in ("w1", "w2") for x in WORDS for y in WORDS]
    train = table(tmp_path / "train.csv", rows[:: max(1, len(rows) // 400)])
    flags = {"data.train": train, "data.eval": None, "data.text": "text", "data.label": "label"}
    base = base_model("bert", tmp_path / "base")
    config = config_for(
        tmp_path, base, f"teacher.scores={train}", "student.cut_from=finetuned", pair=False, flags=flags
    )
    result = tiny_runs.compress(config)
    words = "scores are agreement with large-1's labels, not accuracy by people's labels"
    assert result.artifact is not None
    manifest = load_manifest(result.artifact)
    facts = write_report(result.out)
    assert manifest.lineage.labels == facts.where.labels == "model:large-1"
    assert facts.replaced is not None
    assert facts.replaced.p95_ms == 1930
    texts = [printed(result), render(manifest), (result.artifact / "README.md").read_text(encoding="utf-8")]
    texts += [(result.out / name).read_text(encoding="utf-8") for name in ("report.md", "report.html")]
    for text in texts:
        assert words in text.replace("&#39;", "'")
