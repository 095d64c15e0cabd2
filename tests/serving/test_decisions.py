"""One threshold, and the same label everywhere: in replies that ask for it, in metrics, in tables, on the terminal."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from bag_models import INFO, write_artifact
from live import running
from typer.testing import CliRunner

from kdc.artifact.contract.rates import Rate
from kdc.artifact.decision import Abstention, LabelSets, OperatingPoint, Rates
from kdc.artifact.manifest import TaskInfo
from kdc.cli import app
from kdc.common.errors import InputError
from kdc.serving.engine.engine import Engine

PLAIN = TaskInfo(name="spam", kind="classification", text="text", labels=("ham", "spam"))
TEXTS = [f"w{n}" for n in range(20)]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Spam from a probability on by which half of those rows that are more likely spam than not are ham."""
    folder = tmp_path_factory.mktemp("artifacts")
    spam = Engine.load(write_artifact(folder / "plain", PLAIN, INFO, outputs=2), device="cpu").predict(TEXTS)[:, 1]
    likely = sorted(spam[spam > 0.5])
    threshold = float(likely[len(likely) // 2 - 1] + likely[len(likely) // 2]) / 2
    points = (OperatingPoint(label="spam", threshold=threshold, aim="precision>=0.9"),)
    return write_artifact(folder / "spam", PLAIN.model_copy(update={"points": points}), INFO, outputs=2)


@pytest.fixture(scope="module")
def expected(artifact: Path) -> list[str]:
    """The labels by hand."""
    engine = Engine.load(artifact, device="cpu")
    threshold = engine.task.points[0].threshold
    found = ["spam" if row[1] >= threshold else "ham" for row in engine.predict(TEXTS)]
    most_likely = [PLAIN.labels[row.argmax()] for row in engine.predict(TEXTS)]
    assert found != most_likely  # or the test would not see a forgotten threshold
    assert set(found) == {"ham", "spam"}
    return found


@pytest.fixture(scope="module")
def service(artifact: Path) -> Iterator[str]:
    with running(f"spam={artifact}") as url:
        yield url


def predicted(artifact: Path, folder: Path) -> list[dict[str, str]]:
    """What `kdc predict` writes of the texts."""
    (folder / "in.csv").write_text("text\n" + "\n".join(TEXTS) + "\n", encoding="utf-8")
    paths = (str(folder / "in.csv"), str(folder / "out.csv"))
    done = CliRunner().invoke(app, ["predict", str(artifact), *paths, "--all-scores"])
    assert done.exit_code == 0, done.output
    with (folder / "out.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_reply_tells_the_label_where_it_is_asked_for(service: str, expected: list[str]) -> None:
    rows = [[text] for text in TEXTS]
    plain = httpx2.post(f"{service}/predict", json={"inputs": rows}).json()
    asked = httpx2.post(f"{service}/predict", json={"inputs": rows, "decision": True}).json()
    assert [row["decision"] for row in asked] == expected
    assert [row["scores"] for row in asked] == plain
    alone = httpx2.post(f"{service}/predict", json={"inputs": TEXTS[0], "decision": True}).json()
    assert alone == asked[0]
    hub = httpx2.post(
        f"{service}/predict", json={"inputs": TEXTS[0], "parameters": {"decision": True, "top_k": 1}}
    ).json()
    assert (hub[0]["decision"], len(hub[0]["scores"])) == (expected[0], 1)
    assert httpx2.post(f"{service}/predict", json={"inputs": "w1", "decision": "yes"}).status_code == 422


def test_scores_of_another_function_do_not_change_the_label(service: str, expected: list[str]) -> None:
    body = {"inputs": [[text] for text in TEXTS], "decision": True, "raw_scores": True}
    assert [row["decision"] for row in httpx2.post(f"{service}/predict", json=body).json()] == expected


def test_metrics_count_the_labels_that_are_given(artifact: Path, expected: list[str]) -> None:
    with running(f"spam={artifact}") as url:
        httpx2.post(f"{url}/predict", json={"inputs": [[text] for text in TEXTS]}).raise_for_status()
        shown = httpx2.get(f"{url}/metrics").text
        assert httpx2.get(f"{url}/info").json()["thresholds"] == {
            "spam": Engine.load(artifact).task.points[0].threshold
        }
    for label in PLAIN.labels:
        assert f'kdc_predictions_total{{label="{label}",model="spam"}} {expected.count(label)}.0' in shown


def test_what_is_given_is_compared_with_what_the_threshold_gave_before(artifact: Path, tmp_path: Path) -> None:
    """Would catch an alert on drift that is always on: a threshold may give a label to more rows than have it."""
    none = Rate(hits=0, of=0, low=0, high=1)
    rates = Rates(
        precision=none.model_copy(update={"of": 30}),
        recall=none.model_copy(update={"of": 10}),
        false_alarms=none.model_copy(update={"of": 90}),
    )
    task = Engine.load(artifact).task
    points = (task.points[0].model_copy(update={"tuning": rates}),)
    with running(write_artifact(tmp_path, task.model_copy(update={"points": points}), INFO, outputs=2)) as url:
        shown = httpx2.get(f"{url}/metrics").text
    lines = [line.rpartition(" ") for line in shown.splitlines() if line.startswith("kdc_training_label_share{")]
    found = {label: float(value) for line, _, value in lines for label in PLAIN.labels if f'label="{label}"' in line}
    assert found == pytest.approx({"spam": 0.3, "ham": 0.7})


def test_a_table_has_the_label_and_its_own_probability(artifact: Path, expected: list[str], tmp_path: Path) -> None:
    rows = predicted(artifact, tmp_path)
    assert [row["label"] for row in rows] == expected
    for row in rows:
        assert row["score"] == row[f"score_{row['label']}"]


def test_the_terminal_tells_the_label(artifact: Path, expected: list[str]) -> None:
    answers = zip(TEXTS, expected, Engine.load(artifact).predict(TEXTS), strict=True)
    unlikely = next(text for text, label, row in answers if label == "ham" and row[1] > 0.5)
    done = CliRunner().invoke(app, ["try", str(artifact), unlikely, "--json"])
    document = json.loads(done.stdout)
    assert (document["decision"], document["scores"][0]["label"]) == ("ham", "spam")
    assert CliRunner().invoke(app, ["try", str(artifact), unlikely]).stdout.rstrip().endswith("decision: ham")
    assert "precision>=0.9" in CliRunner().invoke(app, ["inspect", str(artifact)]).stdout


@pytest.fixture(scope="module")
def unsure(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """An artifact of three classes that answers about half of the rows, and what it decides by hand."""
    folder, task = tmp_path_factory.mktemp("artifacts"), PLAIN.model_copy(update={"labels": ("ham", "spam", "eggs")})
    rows = Engine.load(write_artifact(folder / "plain", task, INFO, outputs=3), device="cpu").predict(TEXTS)
    best = sorted(rows.max(axis=1).tolist())
    abstain = Abstention(threshold=(best[9] + best[10]) / 2, aim="accuracy>=0.9", shares=(0.5, 0.125, 0.25))
    made = write_artifact(folder / "unsure", task.model_copy(update={"abstain": abstain}), INFO, outputs=3)
    found = [task.labels[row.argmax()] if row.max() >= abstain.threshold else "abstained" for row in rows]
    assert found.count("abstained") == 10
    return made, found


def test_a_service_tells_which_rows_it_does_not_answer(unsure: tuple[Path, list[str]]) -> None:
    artifact, expected = unsure
    rows = [[text] for text in TEXTS]
    with running(f"spam={artifact}") as url:
        plain = httpx2.post(f"{url}/predict", json={"inputs": rows})
        asked = httpx2.post(f"{url}/predict", json={"inputs": rows, "decision": True})
        others = [
            httpx2.post(f"{url}{path}", json=body)
            for path, body in (
                ("/classify", {"texts": TEXTS}),
                (
                    "/v2/models/spam/infer",
                    {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(TEXTS)], "data": TEXTS}]},
                ),
            )
        ]
        info, shown = httpx2.get(f"{url}/info").json(), httpx2.get(f"{url}/metrics").text
    assert [row["decision"] for row in asked.json()] == expected
    assert [row["scores"] for row in asked.json()] == plain.json()  # who does not ask gets what was there before
    assert [answer.status_code for answer in others] == [200, 200], [answer.text for answer in others]
    # Whatever form a client speaks: its replies are as they were.
    assert [answer.headers["x-abstained-texts"] for answer in (plain, asked, *others)] == ["10"] * 4
    assert info["answers_from"] == Engine.load(artifact).task.abstain.threshold  # type: ignore[union-attr]
    for label in {*expected, "abstained"}:
        assert f'kdc_predictions_total{{label="{label}",model="spam"}} {4 * expected.count(label)}.0' in shown
    shares = {"ham": 0.5, "spam": 0.125, "eggs": 0.25, "abstained": 0.125}
    for label, share in shares.items():
        assert f'kdc_training_label_share{{label="{label}",model="spam"}} {share}' in shown


def test_a_service_that_answers_everything_has_no_header_of_it(service: str) -> None:
    assert "x-abstained-texts" not in httpx2.post(f"{service}/predict", json={"inputs": "w1"}).headers
    assert httpx2.get(f"{service}/info").json()["answers_from"] is None


def test_a_table_says_which_rows_are_not_answered(unsure: tuple[Path, list[str]], tmp_path: Path) -> None:
    artifact, expected = unsure
    rows = predicted(artifact, tmp_path)
    assert [row["label"] for row in rows] == expected
    for row in rows:
        assert float(row["score"]) == max(float(row[f"score_{label}"]) for label in ("ham", "spam", "eggs"))


def test_the_terminal_tells_of_a_row_that_is_not_answered(unsure: tuple[Path, list[str]], tmp_path: Path) -> None:
    artifact, expected = unsure
    text = TEXTS[expected.index("abstained")]
    assert CliRunner().invoke(app, ["try", str(artifact), text]).stdout.rstrip().endswith("decision: abstained")
    assert "accuracy>=0.9" in CliRunner().invoke(app, ["inspect", str(artifact)]).stdout
    labels = [label if label != "abstained" else "ham" for label in expected]
    table = "text,label\n" + "\n".join(f"{text},{label}" for text, label in zip(TEXTS, labels, strict=True))
    (tmp_path / "rows.csv").write_text(table, encoding="utf-8")
    done = CliRunner().invoke(app, ["evaluate", str(artifact), "--data", str(tmp_path / "rows.csv"), "--json"])
    found = json.loads(done.stdout)["abstain"]["evaluation"]
    assert [found[name][key] for name in ("coverage", "accuracy") for key in ("hits", "of")] == [10, 20, 10, 10]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """An artifact of three classes with sets of labels of all sizes, and the sets by hand."""
    folder, labels = tmp_path_factory.mktemp("artifacts"), ("ham", "spam", "eggs")
    task = PLAIN.model_copy(update={"labels": labels})
    rows = Engine.load(write_artifact(folder / "plain", task, INFO, outputs=3), device="cpu").predict(TEXTS)
    at_least = 0.25
    sets = LabelSets(coverage=0.9, at_least=at_least)
    made = write_artifact(folder / "several", task.model_copy(update={"sets": sets}), INFO, outputs=3)
    by_score = [sorted(zip(row.tolist(), labels, strict=True), reverse=True) for row in rows]
    found = [[label for score, label in row if score >= at_least or score == row[0][0]] for row in by_score]
    assert {len(each) for each in found} == {1, 2, 3}
    return made, found


def test_a_service_tells_the_set_of_labels_with_the_decision(several: tuple[Path, list[list[str]]]) -> None:
    artifact, expected = several
    body = {"inputs": [[text] for text in TEXTS]}
    with running(f"spam={artifact}") as url:
        plain = httpx2.post(f"{url}/predict", json=body).json()
        asked = httpx2.post(f"{url}/predict", json=body | {"decision": True}).json()
        first = httpx2.post(f"{url}/predict", json=body | {"decision": True, "top_k": 1, "raw_scores": True}).json()
        info = httpx2.get(f"{url}/info").json()
    assert asked == [
        {"decision": labels[0], "set": labels, "scores": scores} for labels, scores in zip(expected, plain, strict=True)
    ]
    assert [row["set"] for row in first] == expected  # what is shown of the scores does not change it
    assert info["sets"] == {"coverage": 0.9, "at_least": 0.25}


def test_a_service_without_sets_tells_of_none(service: str) -> None:
    assert set(httpx2.post(f"{service}/predict", json={"inputs": "w1", "decision": True}).json()) == {
        "decision",
        "scores",
    }
    assert httpx2.get(f"{service}/info").json()["sets"] is None


def test_a_table_has_a_column_of_sets(several: tuple[Path, list[list[str]]], tmp_path: Path) -> None:
    artifact, expected = several
    rows = predicted(artifact, tmp_path)
    assert list(rows[0]) == ["text", "label", "score", "set", "score_ham", "score_spam", "score_eggs"]
    assert [row["set"].split("|") for row in rows] == expected
    assert [row["label"] for row in rows] == [labels[0] for labels in expected]


def test_the_terminal_tells_the_set(several: tuple[Path, list[list[str]]]) -> None:
    artifact, expected = several
    wide = next(place for place, labels in enumerate(expected) if len(labels) == 2)
    done = CliRunner().invoke(app, ["try", str(artifact), TEXTS[wide]])
    assert done.stdout.rstrip().endswith(f"set: {', '.join(expected[wide])}")
    assert "truth in the set %" in CliRunner().invoke(app, ["inspect", str(artifact)]).stdout


def test_sets_are_counted_on_any_labelled_file(several: tuple[Path, list[list[str]]], tmp_path: Path) -> None:
    artifact, expected = several
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"{text},ham\n" for text in TEXTS), encoding="utf-8")
    done = CliRunner().invoke(app, ["evaluate", str(artifact), "--data", str(tmp_path / "rows.csv"), "--json"])
    found = json.loads(done.stdout)["sets"]["evaluation"]
    assert found["coverage"]["hits"] == sum("ham" in labels for labels in expected)
    assert found["size"] == pytest.approx(sum(map(len, expected)) / len(expected))


def test_an_artifact_without_sets_says_so(artifact: Path) -> None:
    engine = Engine.load(artifact)
    with pytest.raises(InputError, match="no sets"):
        engine.label_sets(engine.predict(["w1"]))
