"""Real clients of decision APIs, and the conformance suite jevcompat, against a running service.

They have an environment of their own, since they come with libraries of their own: `make test-decisions`.
"""

import csv
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from bag_models import SINGLE, write_artifact
from live import ROOT, free_port, running

sys.path.insert(0, str(ROOT))

from benchmarks.serving.stub import in_a_thread
from benchmarks.serving.stub_answers import INPUT_TOKENS, MODEL, OUTPUT_TOKENS
from benchmarks.serving.stub_connection import Stub
from kdc.artifact.decision import Abstention
from kdc.artifact.manifest import TaskInfo
from kdc.artifact.question import Option, Question
from kdc.artifact.question_forms import read_questions
from kdc.serving.engine.engine import Engine
from kdc.tools.label.run import label_table
from kdc.tools.label.spec import Spec

PYTHON = ROOT / ".venv-decisions" / "bin" / "python"
SCRIPT = Path(__file__).with_name("decision_client.py")
pytestmark = [
    pytest.mark.decisions,
    pytest.mark.skipif(not PYTHON.exists(), reason="needs clients in an environment of their own: make test-decisions"),
]
TASKS = {
    "mood": SINGLE,
    "toxic": TaskInfo(name="toxic", kind="multilabel", labels=("insult", "threat", "spam")),
    "urgency": TaskInfo(name="urgency", kind="classification", labels=("now", "later", "soon")),
}
TEMPLATE = "{subject} {body}"
GOOD = {"bad": None, "so so": None, "good": "glad"}
QUESTIONS = {
    "mood": Question(
        type="choice",
        instructions="Which mood?",
        options=(Option(name="bad"), Option(name="so so"), Option(name="good", description="glad")),
        template=TEMPLATE,
    ),
    "toxic": Question(
        type="noul",
        instructions="Is it spam?",
        options=(Option(name="false"), Option(name="true")),
        template=TEMPLATE,
        label="spam",
    ),
    "urgency": Question(
        type="score",
        instructions="How urgent?",
        options=(Option(name="later"), Option(name="soon"), Option(name="now")),
        template=TEMPLATE,
    ),
}


def asked(client: str, *arguments: str) -> Any:
    """What the script prints, run where the clients are."""
    done = subprocess.run(
        [str(PYTHON), str(SCRIPT), client, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("artifacts")
    return {name: write_artifact(folder / name, task, questions=(QUESTIONS[name],)) for name, task in TASKS.items()}


@pytest.fixture(scope="module")
def service(artifacts: dict[str, Path]) -> Iterator[str]:
    with running(",".join(f"{name}={path}" for name, path in artifacts.items())) as url:
        yield url


@pytest.mark.parametrize("client", ["typesafe", "openai", "langchain"])
def test_a_client_gets_the_engines_answers(client: str, service: str, artifacts: dict[str, Path]) -> None:
    rows = {name: Engine.load(path, device="cpu", threads=1).predict(["w1 w2"])[0] for name, path in artifacts.items()}
    answer = asked(client, service, "any-key")
    assert answer["choice"] == pytest.approx(dict(zip(SINGLE.labels, rows["mood"].tolist(), strict=True)), abs=1e-6)
    assert answer["noul"] == pytest.approx(float(rows["toxic"][2]), abs=1e-6)
    now, _, soon = rows["urgency"].tolist()
    assert answer["score"] == pytest.approx(soon + 2 * now, abs=1e-6)
    assert answer["legend"] == {"0": "later", "1": "soon", "2": "now"}
    assert answer["tokens"] > 8
    assert answer["models"] in (list(TASKS), None)
    assert "Which mood?" in answer["refused"]


@pytest.mark.parametrize(("kind", "state"), [("systemone", "state"), ("decisions", "input")])
def test_kdc_label_asks_the_stub_what_an_official_client_asks_and_reads_the_same(
    kind: str, state: str, tmp_path: Path
) -> None:
    """The official clients check the stub's replies, so that labels from the stub are labels from such an endpoint."""
    rows = {"bad": 0.25, "so so": 0.125, "good": 0.625, "true": 0.75}
    asks = {
        "choice": {"type": "choice", "instructions": "Which mood?", "criteria": GOOD},
        "noul": {"type": "noul", "instructions": "Is it spam?"},
    }
    (tmp_path / "in.csv").write_text("text\nw1\n")
    with in_a_thread(Stub(table={"w1": rows})) as stub:
        answer = asked(kind, stub.url, "any-key")
        for name, question in asks.items():
            source = {"kind": kind, "url": f"{stub.url}/v1", "model": "gpt-6-luna"}
            spec = Spec.model_validate({"source": source, "question": question})
            label_table(spec, str(tmp_path / "in.csv"), str(tmp_path / f"{name}.csv"))
        sent = [each.document for each in stub.asked if each.method == "POST"]
    by_client, by_kdc = ([{key: each[key] for key in (state, "questions")} for each in some] for some in halves(sent))
    assert by_kdc == by_client
    assert answer["probabilities"] == {name: rows[name] for name in GOOD}
    assert answer["noul"] == rows["true"]
    assert (answer["choice"], answer["model"], answer["tokens"]) == ("good", MODEL, INPUT_TOKENS + OUTPUT_TOKENS)
    for name, column, expected in (("choice", "good", rows["good"]), ("noul", "true", rows["true"])):
        with (tmp_path / f"{name}.csv").open(newline="") as stream:
            (row,) = csv.DictReader(stream)
        assert float(row[column]) == pytest.approx(expected)


def halves(values: list[Any]) -> tuple[list[Any], list[Any]]:
    return values[: len(values) // 2], values[len(values) // 2 :]


# All that jevcompat 0.1 asks, so that it needs no model that answers any question: `--answers` takes them by options.
QUEUES = [f"Queue {place:03d}" for place in range(255)]
OPTIONS: list[list[str]] = [
    ["false", "true"],
    ["Billing", "Technical", "Sales"],
    ["Billing", "Technical"],
    *(["Billing", *QUEUES[1:count]] for count in (26, 64, 128, 255)),
    ["환불 요청", "배송 문의", "🙂 기타"],
    ["Red", "Green", "Blue", "Yellow", "Purple"],
    ["English", "Other"],
    ["Calm", "Very angry"],
    ["Calm", "Frustrated", "Very angry"],
    *([f"Level {level}: {'angrier' if level else 'calm'}" for level in range(count)] for count in (5, 10)),
    ["Not at all", "A little", "Somewhat", "A lot", "More than anything"],
    ["Rude", "Neutral", "Polite"],
    ['{"label":"Calm"}', '{"label":"Frustrated"}', '{"label":"Very angry","signals":["threats"]}'],
]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Artifacts for all options, and their names."""
    folder = tmp_path_factory.mktemp("everything")
    places = {}
    for place, labels in enumerate(OPTIONS):
        task = TaskInfo(name="any", kind="classification", labels=tuple(labels))
        places[f"m{place}"] = write_artifact(folder / str(place), task, outputs=len(labels))
    return ",".join(f"{name}={path}" for name, path in places.items()), ",".join(places)


@pytest.mark.parametrize("key", ["", "s3cret"])
def test_all_requirements_of_jevcompat_are_met(
    everything: tuple[str, str], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MUST and SHOULD. Those about tokens are tested with a token, and one without."""
    monkeypatch.setenv("DECISION_KEY", key or "unused")
    artifacts, names = everything
    with running(artifacts, answers=names, api_key_env="DECISION_KEY" if key else None) as url:
        report = asked("jevcompat", url, *([key] if key else []))
    assert report["found"] == []
    assert report["verdict"] == "conformant"
    untested = {"auth.ignored-when-off"} if key else {"auth.bearer", "auth.missing", "auth.invalid"}
    # The model's name is refused nowhere, so no error but a token's has the shape of `errors.shape`.
    assert set(report["skip"]) == untested | {"errors.shape"}


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("nobody listens after 30 s")


@contextmanager
def reference(*options: str) -> Iterator[str]:
    """jevcompat's reference server, as an upstream."""
    port = free_port()
    command = [str(PYTHON.with_name("jevcompat")), "mock", "--port", str(port), *options]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize("key", ["", "s3cret"])
def test_all_requirements_are_met_in_front_of_the_reference_server(
    artifacts: dict[str, Path], key: str, tmp_path: Path
) -> None:
    """All, `errors.shape` too: any question and any model's name go upstream. The key is the caller's."""
    state = str(tmp_path)
    with (
        reference(*(["--key", key] if key else [])) as upstream,
        running(artifacts["mood"], upstream=upstream, forward_key=bool(key), state_dir=state, audit=1) as url,
    ):
        report = asked("jevcompat", url, *([key] if key else []))
    assert report["found"] == []
    assert report["verdict"] == "conformant"
    assert set(report["skip"]) == (
        {"auth.ignored-when-off"} if key else {"auth.bearer", "auth.missing", "auth.invalid"}
    )


ANY = {
    "urgent": {"type": "noul", "instructions": "Is it urgent?"},
    "topic": {"type": "choice", "criteria": {"Billing": None, "Technical": None}},
    "anger": {"type": "score", "criteria": ["calm", "cross", "furious"]},
}


@pytest.mark.parametrize(
    "fault",
    ["wrong-route", "xssi-200", "first-question-only", "boolean-type", "nan", "noul-range", "auth-rejects-header"],
)
def test_a_fault_of_the_upstream_is_an_error_and_no_answer(
    artifacts: dict[str, Path], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known question is still answered. A missing route, and a refused key of the service, are faults too."""
    monkeypatch.setenv("KDC_UPSTREAM_KEY", "s3cret")
    body = {"model": "jev-latest", "state": "w1", "questions": ANY}
    known = {"state": "w1", "questions": {"q": {"type": "choice", "instructions": "Which mood?", "criteria": GOOD}}}
    with (
        reference("--fault", fault) as upstream,
        running(artifacts["mood"], upstream=upstream, state_dir=str(tmp_path), audit=0) as url,
    ):
        reply = httpx2.post(f"{url}/v1/systemone", json=body, timeout=30)
        here = httpx2.post(f"{url}/v1/systemone", json=known, timeout=30)
    expected = 404 if fault == "wrong-route" else 502
    assert (reply.status_code, reply.headers["x-kdc-source"]) == (expected, "upstream")
    assert "detail" in reply.json() or fault == "wrong-route"
    assert (here.status_code, here.headers["x-kdc-source"]) == (200, "local")


@pytest.mark.parametrize("fault", ["extra-answer", "no-usage", "plain-content-type", "unprefixed-extra", "float-usage"])
def test_what_an_upstream_adds_or_leaves_out_costs_no_answer(
    artifacts: dict[str, Path], fault: str, tmp_path: Path
) -> None:
    with (
        reference("--fault", fault) as upstream,
        running(artifacts["mood"], upstream=upstream, state_dir=str(tmp_path), audit=0) as url,
    ):
        reply = httpx2.post(
            f"{url}/v1/systemone", json={"model": "jev-latest", "state": "w1", "questions": ANY}, timeout=30
        )
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert list(reply.json()["answers"]) == list(ANY)
    assert reply.json()["usage"].keys() >= {"input_tokens", "output_tokens"}


TEAMS = {
    "Billing": "Payments, invoices, refunds",
    "Technical": "Bugs, outages, integrations",
    "Sales": "Pricing questions, upgrades, new contracts",
}
TEAM = Question(  # one that jevcompat asks, also beside others
    type="choice",
    instructions="Which team should handle this ticket?",
    options=tuple(Option(name=name, description=description) for name, description in TEAMS.items()),
)


def broken(report: dict[str, Any]) -> set[str]:
    """The requirements that a server breaks; a 502 breaks none but the upstream's."""
    return {finding.partition(":")[0] for finding in report["found"] if "got 502" not in finding}


def test_whatever_the_reference_server_breaks_we_break_no_more(tmp_path: Path) -> None:
    """With each of its faults, and a question that is answered here. A reply that fits no question becomes a 502."""
    task = TaskInfo(name="team", kind="classification", labels=tuple(TEAMS))
    artifact, port = write_artifact(tmp_path / "team", task, questions=(TEAM,)), free_port()
    with running(artifact, upstream=f"http://127.0.0.1:{port}", state_dir=str(tmp_path), audit=0) as url:
        reports = asked("faults", url, str(port))
        shown = httpx2.get(f"{url}/metrics").text
    assert len(reports) > 40
    assert (reports[""]["us"]["found"], reports[""]["us"]["verdict"]) == ([], "conformant")
    more = {fault: broken(each["us"]) - broken(each["it"]) for fault, each in reports.items()}
    assert {fault: found for fault, found in more.items() if found} == {}
    local = 'kdc_decisions_total{model="team",reason="sure",source="local"}'
    assert [float(line.split()[-1]) > 100 for line in shown.splitlines() if line.startswith(local)] == [True]


TOPICS = TaskInfo(name="topics", kind="classification", labels=("files", "network", "numbers", "text"))
EXAMPLE = ROOT / "examples" / "decisions"


@pytest.mark.parametrize(("threshold", "source"), [(0.0, "local"), (1.0, "upstream")])
def test_the_tutorials_application_moves_to_kdc_by_one_variable(
    threshold: float, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same file asks the stand-in for a hosted model, then kdc in front of it, which is sure of all or nothing."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    rows = tmp_path / "rows.csv"
    subprocess.run([str(PYTHON), str(EXAMPLE / "hosted.py"), str(rows)], check=True, timeout=60)
    port = free_port()

    def application(url: str) -> list[str]:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
        command = [str(PYTHON), str(EXAMPLE / "app.py"), str(rows), "20"]
        return subprocess.run(command, check=True, timeout=120, capture_output=True, text=True).stdout.splitlines()

    (asked,) = read_questions(EXAMPLE / "question.json")
    sure = Abstention(threshold=threshold, aim="error<=0.05")
    artifact = write_artifact(
        tmp_path / "topics", TOPICS.model_copy(update={"abstain": sure}), outputs=4, questions=(asked,)
    )
    hosted = subprocess.Popen([str(PYTHON), str(EXAMPLE / "hosted.py"), "serve", str(port)])
    try:
        upstream = f"http://127.0.0.1:{port}"
        wait_for_port(port)
        before, by_hosted = application(upstream)
        with running(artifact, upstream=upstream, state_dir=str(tmp_path / "state"), audit=0) as url:
            after, by_both = application(url)
    finally:
        hosted.kill()
        hosted.wait()
    assert "20 answered as the hosted model does" in before
    assert by_hosted == "answered by {'hosted': 20}"
    assert by_both == f"answered by {{'{source}': 20}}"
    assert ("20 answered as the hosted model does" in after) == (source == "upstream")
    times = [float(re.search(r"median ([\d.]+) ms", line)[1]) for line in (before, after)]  # type: ignore[index]
    with capsys.disabled():
        print(f"\nthe application's median before and behind kdc: {times} ms, answered {by_both}")
