"""One threshold, and the same label everywhere: in replies that ask for it, in metrics, in tables, on the terminal."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from bag_models import INFO, write_artifact
from live import running
from typer.testing import CliRunner

from kdc.artifact.decision import OperatingPoint, Rate, Rates
from kdc.artifact.manifest import TaskInfo
from kdc.cli import app
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


def test_a_reply_tells_the_label_where_it_is_asked_for(service: str, expected: list[str]) -> None:
    rows = [[text] for text in TEXTS]
    plain = httpx.post(f"{service}/predict", json={"inputs": rows}).json()
    asked = httpx.post(f"{service}/predict", json={"inputs": rows, "decision": True}).json()
    assert [row["decision"] for row in asked] == expected
    assert [row["scores"] for row in asked] == plain
    alone = httpx.post(f"{service}/predict", json={"inputs": TEXTS[0], "decision": True}).json()
    assert alone == asked[0]
    hub = httpx.post(
        f"{service}/predict", json={"inputs": TEXTS[0], "parameters": {"decision": True, "top_k": 1}}
    ).json()
    assert (hub[0]["decision"], len(hub[0]["scores"])) == (expected[0], 1)
    assert httpx.post(f"{service}/predict", json={"inputs": "w1", "decision": "yes"}).status_code == 422


def test_scores_of_another_function_do_not_change_the_label(service: str, expected: list[str]) -> None:
    body = {"inputs": [[text] for text in TEXTS], "decision": True, "raw_scores": True}
    assert [row["decision"] for row in httpx.post(f"{service}/predict", json=body).json()] == expected


def test_metrics_count_the_labels_that_are_given(artifact: Path, expected: list[str]) -> None:
    with running(f"spam={artifact}") as url:
        httpx.post(f"{url}/predict", json={"inputs": [[text] for text in TEXTS]}).raise_for_status()
        shown = httpx.get(f"{url}/metrics").text
        assert httpx.get(f"{url}/info").json()["thresholds"] == {"spam": Engine.load(artifact).task.points[0].threshold}
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
        shown = httpx.get(f"{url}/metrics").text
    lines = [line.rpartition(" ") for line in shown.splitlines() if line.startswith("kdc_training_label_share{")]
    found = {label: float(value) for line, _, value in lines for label in PLAIN.labels if f'label="{label}"' in line}
    assert found == pytest.approx({"spam": 0.3, "ham": 0.7})


def test_a_table_has_the_label_and_its_own_probability(artifact: Path, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text\n" + "\n".join(TEXTS) + "\n", encoding="utf-8")
    paths = (str(tmp_path / "in.csv"), str(tmp_path / "out.csv"))
    done = CliRunner().invoke(app, ["predict", str(artifact), *paths, "--all-scores"])
    assert done.exit_code == 0, done.output
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
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
