"""The report of a finished run: every figure is a stage's own, and the page says what `report.json` says."""

import copy
import html
import json
import re
import shutil
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
from conftest import ALL_MODELS, Finished
from sklearn.metrics import confusion_matrix

from kdc.artifact.folder import load_manifest
from kdc.common.errors import InputError
from kdc.pipeline.compress import compress_for_people
from kdc.pipeline.config.student_kinds import UNCUT_NAME
from kdc.pipeline.config.tasks import custom_task, decided_by
from kdc.pipeline.report import plots
from kdc.pipeline.report.facts import Facts
from kdc.pipeline.report.gather import verdict, wide
from kdc.pipeline.report.page import markdown, page, reported_artifact, table, write_report
from kdc.pipeline.rundir.directory import note_command, read_commands


class Reader(HTMLParser):
    """Tables as cells, ids, tags, addresses, and the texts of what is drawn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.told: list[str] = []
        self._cell: list[str] | None = None
        self._title = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.addresses.append(value or "")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []
        elif tag == "title" and "svg" in self.tags:
            self._title = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.tables[-1][-1].append("".join(self._cell or []))
            self._cell = None
        self._title = False

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)
        if self._title:
            self.told.append(data)


@pytest.fixture(scope="module")
def run(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copied = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(finished.folder / "run", copied, symlinks=True)
    note_command(copied, "kdc compress --train train.csv")
    write_report(copied)
    return copied


@pytest.fixture(scope="module")
def facts(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def text(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def stage(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / name / "stage.json").read_text(encoding="utf-8"))


def test_costs_and_scores_are_those_of_stage_evaluate(run: Path, facts: dict[str, Any]) -> None:
    measured, metric = stage(run, "evaluate")["metrics"]["table"], facts["task"]["metric"]
    assert set(facts["models"]) == set(measured)
    for name, row in measured.items():
        model = facts["models"][name]
        assert {**model["metrics"], **{key: model[key] for key in row if key in model}} == row
        assert model["kept_percent"] == pytest.approx(100 * row[metric] / measured["teacher"][metric])
        assert model["difference"] == pytest.approx(row[metric] - measured["teacher"][metric])
        assert model["interval"][0] <= row[metric] <= model["interval"][1]


def test_trainings_are_those_of_their_stages(run: Path, facts: dict[str, Any]) -> None:
    reported = {"teacher": stage(run, "teacher")["metrics"], "student": stage(run, "student")["metrics"]}
    reported |= stage(run, "controls")["metrics"]
    assert set(facts["training"]) == set(reported)
    for name, metrics in reported.items():
        curve, model = facts["training"][name], facts["models"][name]
        assert model["training_seconds"] == metrics["seconds"] > 0
        assert model["trainable_parameters"] == metrics["trainable_parameters"]
        assert curve["score"][-1][0] == metrics["steps"]
        assert dict(map(tuple, curve["score"]))[metrics["best_step"]] == metrics["best_score"]
        assert len(curve["loss"]) > len(curve["score"])
    assert facts["models"]["teacher"]["trainable_parameters"] == facts["models"]["teacher"]["parameters"]
    assert facts["models"]["student"]["trainable_parameters"] < facts["models"]["merged"]["parameters"]


def test_confusion_and_disagreements_follow_from_the_artifacts_logits(run: Path, facts: dict[str, Any]) -> None:
    kept = np.load(run / "artifact" / "evaluation.npz")
    served = "student_int8_logits" if facts["served"] == "int8" else "student_logits"
    answers = {"teacher": kept["teacher_logits"].argmax(1), "student": kept[served].argmax(1)}
    for name, answer in answers.items():
        assert facts["confusion"][name] == confusion_matrix(kept["label"], answer).tolist()
    assert facts["disagreements"]["count"] == (answers["teacher"] != answers["student"]).sum()


def test_calibration_is_the_manifests(run: Path, facts: dict[str, Any]) -> None:
    manifest = load_manifest(run / "artifact")
    folded = stage(run, "merge")["metrics"]["temperature"]
    assert facts["calibration"]["temperature"] == manifest.folded_temperature == folded
    assert manifest.temperature == 1
    kept = np.load(run / "artifact" / "evaluation.npz")
    logits = kept["student_int8_logits" if facts["served"] == "int8" else "student_logits"].astype(np.float64)
    for key, temperature in (("before", 1 / folded), ("after", 1.0)):
        likely = np.exp(logits / temperature)
        likely /= likely.sum(1, keepdims=True)
        confidence, right = likely.max(1), likely.argmax(1) == kept["label"]
        edges = np.minimum(np.floor(confidence * 15), 14)
        error = sum(abs(confidence[edges == edge].sum() - right[edges == edge].sum()) for edge in range(15)) / len(
            right
        )
        assert facts["calibration"][key]["ece"] == pytest.approx(error, abs=1e-5)


def test_lengths_are_those_of_the_training_rows(run: Path, facts: dict[str, Any]) -> None:
    assert sum(facts["lengths"]["counts"]) == facts["where"]["rows"]["train"]
    assert facts["lengths"]["cut"] == stage(run, "data")["metrics"]["max_length"]["student"]


def test_the_origin_is_the_manifests(run: Path, facts: dict[str, Any]) -> None:
    manifest = load_manifest(run / "artifact")
    assert facts["where"]["artifact_sha256"] == manifest.sha256
    assert facts["where"]["data_fingerprint"] == manifest.lineage.data_fingerprint
    assert facts["where"]["commands"] == ["kdc compress --train train.csv"]


def test_the_page_and_the_markdown_say_what_the_json_says(run: Path, facts: dict[str, Any], text: str) -> None:
    assert Reader(text).tables[0] == table(Facts.model_validate(facts))
    lines = [line for line in (run / "report.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [cells[0], *cells[2:]] == table(Facts.model_validate(facts))
    assert facts["verdict"] in html.unescape(text)


def test_the_verdict_is_of_the_variant_that_a_cpu_loads(facts: dict[str, Any]) -> None:
    served = facts["models"][facts["served"]]
    assert f"keeps {served['kept_percent']:.1f} %" in facts["verdict"]
    for factor, words in ((4, "4.0 times smaller"), (0.5, "2.0 times larger")):
        sized = copy.deepcopy(facts)
        sized["models"]["teacher"]["size_bytes"] = int(factor * served["size_bytes"])
        assert words in verdict(Facts.model_validate(sized))
    told = copy.deepcopy(facts)
    for name, latency in ((facts["served"], 2.0), ("teacher_fp32", 5.0), ("teacher", 9.0), ("teacher_int8", 3.0)):
        told["models"][name]["latency_p50_ms"] = latency
    told["models"]["teacher_int8"]["metrics"][facts["task"]["metric"]] = 61.8
    # Most of the factor against torch is the runtime: it stands behind the one in the same runtime.
    words = verdict(Facts.model_validate(told))
    assert (
        "2.5 times faster than the teacher in onnxruntime cpu (4.5 times faster than the teacher in torch cpu)" in words
    )
    assert "The teacher itself, uncut, in int8 has 61.8 points and takes 1.5 times as long." in words


def test_the_verdict_on_an_uncut_teacher_is_by_its_own_runtime_too(facts: dict[str, Any]) -> None:
    """Catches a factor that is the runtime's alone, where nothing was cut."""
    uncut = copy.deepcopy(facts)
    for name in ("teacher_fp32", "teacher_int8"):
        del uncut["models"][name]
    uncut["where"]["student"] = UNCUT_NAME
    for name, latency in (("int8", 2.0), ("fp32", 3.0), ("teacher", 9.0)):
        uncut["models"][name]["latency_p50_ms"] = latency
    uncut["served"] = "int8"
    assert "1.5 times faster than the teacher in onnxruntime cpu" in verdict(Facts.model_validate(uncut))


def test_the_page_asks_for_nothing_outside_itself(text: str) -> None:
    reader = Reader(text)
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(reader.tags)
    assert all(address.startswith("#") for address in reader.addresses)
    assert not re.search(r"url\((?!#)|@import", text)
    assert "default-src 'none'" in text


def test_every_figure_has_words_and_every_id_is_its_own(text: str) -> None:
    reader = Reader(text)
    figures = reader.tags.count("figure")
    assert figures == 5
    assert len(reader.told) == figures
    assert all(len(words) > 40 for words in reader.told)
    assert len(reader.ids) == len(set(reader.ids))
    assert {address[1:] for address in reader.addresses} <= set(reader.ids)


def test_colours_are_the_pages_own(text: str) -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) <= {"#000000"}  # what is drawn with no ink
    assert "var(--ink)" in drawn


def hostile(facts: dict[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(facts)
    changed["disagreements"] |= {
        "count": 1,
        "rows": [
            {
                "text": "<script>alert(1)</script>",
                "text_pair": "a | b\n$x^2$ & <b>",
                "label": "<i>",
                "teacher": "yes",
                "student": "no",
                "confidence": 0.5,
            }
        ],
    }
    changed["task"]["labels"] = ["<img src=x>", "$no$"]
    changed["where"]["commands"] = ["kdc compress --train '</pre><script>'"]
    return changed


def test_quoted_texts_cannot_become_part_of_the_page(facts: dict[str, Any]) -> None:
    reader = Reader(page(Facts.model_validate(hostile(facts))))
    assert not {"script", "img", "b", "i"} & set(reader.tags)
    assert reader.tables[1][1][:2] == ["<script>alert(1)</script>", "a | b\n$x^2$ & <b>"]


def replacing(facts: dict[str, Any], labels: str) -> Facts:
    """As if a large model had labelled the rows, and 30 of 120 were deferred."""
    changed = copy.deepcopy(facts)
    changed["replaced"] = {"text": "text", "model": "<b>large", "how": {"votes": 400}, "usd": 0.3, "p50_ms": 812.4}
    changed["where"]["labels"] = labels
    rates = {"coverage": 90, "disagreement": 6, "error": 12}
    evaluation: dict[str, Any] = {name: {"hits": hits, "of": 120, "low": 0, "high": 1} for name, hits in rates.items()}
    evaluation["accuracy"] = {"hits": 78, "of": 90, "low": 0, "high": 1}
    abstain = {"threshold": 0.7, "aim": "disagreement<=0.1", "evaluation": evaluation}
    changed["abstention"] = {"abstain": abstain, "teacher": [[1, 1]], "student": [[1, 1]]}
    return Facts.model_validate(changed)


def test_the_last_section_is_of_the_model_that_is_replaced(facts: dict[str, Any]) -> None:
    told = page(replacing(facts, "model:<b>large"))
    student = facts["models"][facts["served"]]
    large, own = Reader(told).tables[-1][1:]
    assert large == ["<b>large", "812", "-", "750.00"]  # 0.3 USD for 400 texts
    assert own[1:3] == [f"{student['latency_p50_ms']:.2f}", f"{student['latency_p95_ms']:.2f}"]
    last = html.unescape(told.rpartition("<h2>")[2])
    assert last.startswith("The model you replace</h2>")
    assert "25.0 % of the evaluation rows go on upstream" in last
    assert "95.0 % with the teacher and 90.0 % with <b>large's labels" in last


def test_peoples_labels_are_no_agreement_with_the_model(facts: dict[str, Any]) -> None:
    """Rows that go on count as agreeing: with the model they would, with people they may not."""
    told = markdown(replacing(facts, "people"))
    assert "95.0 % with the teacher." in told
    assert "90.0 %" not in told


def test_of_other_runs_no_replaced_model_is_told(text: str) -> None:
    assert "The model you replace" not in text


def test_without_examples_no_row_is_quoted(run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied, symlinks=True)
    assert write_report(copied, examples=False).disagreements.rows == ()
    assert len(Reader((copied / "report.html").read_text(encoding="utf-8")).tables) == 1


def test_each_quoted_text_has_its_own_direction(facts: dict[str, Any]) -> None:
    """Would catch: Arabic from left to right, with its full stop on the wrong side."""
    told = page(Facts.model_validate(hostile(facts)))
    assert '<th scope="row" dir="auto">&lt;script&gt;' in told
    assert '<td dir="auto">a | b' in told


def test_labels_that_matplotlib_has_no_letters_for_are_text_without_a_warning() -> None:
    """The browser has the letters."""
    names, counts = ["苦情", "請求書"], ((3, 1), (0, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = plots.confusion({"teacher": counts, "student": counts}, names, "int8")
    assert all(f">{name}<" in drawn for name in names)


def test_the_same_run_gives_the_same_page(run: Path, text: str) -> None:
    write_report(run)
    assert (run / "report.html").read_text(encoding="utf-8") == text


def test_what_is_not_a_finished_run_is_wrong_input(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished run"):
        write_report(tmp_path)
    shutil.copytree(run, tmp_path / "cut off", symlinks=True)
    (tmp_path / "cut off" / "package" / "stages.json").unlink()
    with pytest.raises(InputError, match="no finished run"):
        write_report(tmp_path / "cut off")


@pytest.mark.parametrize("change", ["another", "gone"])
def test_stages_that_a_later_start_redid_are_not_reported_beside_older_ones(
    run: Path, tmp_path: Path, change: str
) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied, symlinks=True)
    record = copied / "teacher" / "stage.json"
    if change == "gone":
        record.unlink()
    else:
        record.write_text(json.dumps(stage(copied, "teacher") | {"fingerprint": "of other settings"}), encoding="utf-8")
    with pytest.raises(InputError, match="later start has changed the run") as caught:
        write_report(copied)
    assert str(copied / "teacher") in str(caught.value)
    assert (copied / "report.html").read_bytes() == (run / "report.html").read_bytes()


def test_a_later_start_that_came_to_the_same_artifact_is_reported(
    finished: Finished, run: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied, symlinks=True)
    (copied / "package" / "stages.json").write_text('{"teacher": "of other settings"}', encoding="utf-8")
    flags = {"run.out": copied} | ALL_MODELS
    again = tiny_runs.compress(tiny_runs.config_for(finished.folder, finished.teacher, flags=flags))
    assert again.stages["package"].skipped
    assert write_report(copied).where.artifact_sha256 == reported_artifact(run)


def test_a_report_says_which_artifact_it_is_of(run: Path, tmp_path: Path) -> None:
    assert reported_artifact(run) == stage(run, "package")["metrics"]["sha256"]
    assert reported_artifact(tmp_path) is None
    shutil.copytree(run, tmp_path / "cut off", symlinks=True)
    (tmp_path / "cut off" / "report.html").unlink()
    assert reported_artifact(tmp_path / "cut off") is None
    (tmp_path / "report.json").write_text("[]", encoding="utf-8")
    assert reported_artifact(tmp_path) is None


def test_a_run_that_was_killed_before_its_report_gets_the_report_of_its_own_artifact(
    finished: Finished, run: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied, symlinks=True)
    flags = {"run.out": copied} | ALL_MODELS
    config = tiny_runs.config_for(finished.folder, finished.teacher, "evaluate.rounds=2", flags=flags)
    tiny_runs.compress(config)  # as killed after `package`
    made = stage(copied, "package")["metrics"]["sha256"]
    assert reported_artifact(copied) != made
    compress_for_people(config, start_from=None, until=None, force=False)
    assert reported_artifact(copied) == made


def test_markdown_has_one_table(facts: dict[str, Any]) -> None:
    assert markdown(Facts.model_validate(facts)).count("\n| ---") == 1


def test_a_command_is_noted_once(tmp_path: Path) -> None:
    for command in ("kdc compress a", "kdc compress a", "kdc compress b", "kdc compress a"):
        note_command(tmp_path, command)
    assert read_commands(tmp_path) == ["kdc compress a", "kdc compress b", "kdc compress a"]


def test_the_report_names_the_classes_that_make_the_interval_of_a_macro_f1_wide() -> None:
    """The student loses one of two rows of `refund`, one of five of `card` and one of 50 of `other`."""
    labels = np.repeat([0, 1, 2, 3], [50, 5, 2, 10])
    answers = labels.copy()
    answers[[0, 50, 55]] = [3, 3, 3]
    task = custom_task("own", "text", None, "label", "classification", ("other", "card", "refund", "pin"))
    words = wide(np.eye(4)[answers], np.eye(4)[labels], labels, task, np.arange(67))
    assert words.startswith(" More rows of these labels would narrow the interval most: refund (2 rows)")
    assert wide(np.eye(4)[labels], np.eye(4)[labels], labels, task, np.arange(67)) == ""
    by_accuracy = decided_by(task, "accuracy")
    assert wide(np.eye(4)[answers], np.eye(4)[labels], labels, by_accuracy, np.arange(67)) == ""
