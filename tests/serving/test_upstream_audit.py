"""The audit beside the service: it stops an artifact that differs too often, and keeps nobody waiting."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from live import Process, running
from upstreams import (
    BUDGET,
    HALF,
    KNOWN,
    PATHS,
    SURE,
    UNSURE,
    answers,
    asked,
    fronted,
    local_label,
    post,
    upstreams_answer,
    write_artifacts,
    wrong,
)

from benchmarks.serving.stub import in_a_thread
from benchmarks.serving.stub_answers import SYSTEM_ONE
from benchmarks.serving.stub_connection import Stub

# Sure texts of which the stub says otherwise, and texts of which `GOOD` is what both artifacts say.
OTHERWISE = [text for text in SURE if upstreams_answer(SYSTEM_ONE, "mood", text)["choice"] != local_label("mood", text)]
GOOD = {"good": 1.0, "bad": 0.0, "so so": 0.0, "true": 1.0}
GOOD_TEXTS = [text for text in SURE if [local_label(name, text) for name in KNOWN] == ["good", "yes"]]


@pytest.fixture
def stub() -> Iterator[Stub]:
    with in_a_thread(Stub()) as stub:
        yield stub


def source(url: str, text: str, names: tuple[str, ...] = KNOWN, path: str = SYSTEM_ONE) -> str:
    reply = post(url, path, asked(path, text, names))
    assert reply.status_code == 200, reply.text
    assert {name: wrong(path, name, text, each) for name, each in answers(path, reply.json()).items()} == dict.fromkeys(
        names, ""
    )
    return str(reply.headers["x-kdc-source"])


def until(holds: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def counted(url: str, name: str) -> dict[str, float]:
    """Values of a metric, by its labels."""
    lines = [line.rpartition(" ") for line in httpx2.get(f"{url}/metrics").text.splitlines()]
    return {key.removeprefix(name): float(value) for key, _, value in lines if key.startswith(name + "{")}


def is_stopped(process: Process, text: str = OTHERWISE[0]) -> bool:
    return source(process.url, text, ("mood",)) == "upstream"


def test_an_artifact_that_differs_too_often_stops_until_it_is_resumed(stub: Stub, tmp_path: Path) -> None:
    """Over restarts. The other artifact goes on."""
    with fronted(tmp_path, stub, KDC_AUDIT="1") as process:
        assert not is_stopped(process)
        until(lambda: is_stopped(process))
        assert source(process.url, SURE[0], ("urgent",)) == "local"
        until(lambda: counted(process.url, "kdc_stopped") == {'{model="mood"}': 1.0, '{model="urgent"}': 0.0})
        assert counted(process.url, "kdc_disagreement")['{bound="low",model="mood"}'] > BUDGET
        assert process.printed().count("mood: answers nothing any more") == 1
    artifacts = write_artifacts(tmp_path)
    with running(artifacts, upstream=stub.url, audit=0, state_dir=str(tmp_path / "state")) as url:
        assert [source(url, SURE[0], (name,)) for name in KNOWN] == ["upstream", "local"]
    with fronted(tmp_path, stub, "--resume", KDC_AUDIT="0") as process:
        assert not is_stopped(process)


@pytest.mark.slow  # the test before this one has the stop itself
def test_all_workers_stop(stub: Stub, tmp_path: Path) -> None:
    with fronted(tmp_path, stub, "--workers", "2", KDC_AUDIT="1") as process:
        until(lambda: is_stopped(process))
        time.sleep(2)  # the other worker looks each second
        assert {is_stopped(process) for _ in range(20)} == {True}


@pytest.fixture
def start(stub: Stub, tmp_path: Path) -> Callable[..., Any]:
    artifacts = write_artifacts(tmp_path)
    return lambda **more: running(artifacts, **{"upstream": stub.url, "audit": 1, "state_dir": str(tmp_path)} | more)


@pytest.mark.parametrize("path", PATHS)
def test_an_audit_asks_the_very_question_alone(start: Callable[..., Any], stub: Stub, path: str) -> None:
    with start() as url:
        assert source(url, HALF[0], KNOWN, path) == "mixed"
        until(lambda: len(stub.asked) == 2)
        forwarded, audited = (request.document for request in stub.asked)
        assert forwarded == asked(path, HALF[0], ("urgent",))
        assert audited == asked(path, HALF[0], ("mood",))
        # A deferred question needs no second request.
        until(lambda: counted(url, "kdc_audits_total").get('{model="urgent",outcome="deferred"}') == 1)


def test_answers_that_agree_stop_nothing(start: Callable[..., Any], stub: Stub) -> None:
    stub.table = dict.fromkeys(GOOD_TEXTS, GOOD)
    with start() as url:
        for _ in range(40):
            assert source(url, GOOD_TEXTS[0]) == "local"
        until(lambda: sum(counted(url, "kdc_audits_total").values()) >= 40)
        assert {"agree", "dropped"} >= {
            key.split('outcome="')[1].rstrip('"}') for key in counted(url, "kdc_audits_total")
        }
        assert source(url, GOOD_TEXTS[1]) == "local"


def test_a_full_queue_keeps_nobody_waiting(start: Callable[..., Any], stub: Stub) -> None:
    """An upstream that takes seconds for each audit: local answers come at once, and audits are dropped and counted."""
    stub.behaviour.delay_s = 2.0
    with start() as url, httpx2.Client() as client:
        began = time.monotonic()
        for number in range(200):
            reply = client.post(url + SYSTEM_ONE, json=asked(SYSTEM_ONE, SURE[number % 50], KNOWN))
            assert reply.headers["x-kdc-source"] == "local"
        assert time.monotonic() - began < 20  # 400 audits, two at a time, would take 400 s
        until(lambda: sum(counted(url, "kdc_audits_total").values()) >= 300)
        dropped = [value for key, value in counted(url, "kdc_audits_total").items() if 'outcome="dropped"' in key]
        assert sum(dropped) >= 300


def test_an_upstream_that_fails_says_nothing_of_the_artifact(start: Callable[..., Any], stub: Stub) -> None:
    stub.behaviour.faults = {"500": 0.4, "missing": 0.3, "json": 0.3}
    with start() as url:
        for text in SURE[:4]:
            source(url, text)
        until(lambda: sum(counted(url, "kdc_audits_total").values()) >= 4)
        assert {key.split('outcome="')[1] for key in counted(url, "kdc_audits_total")} == {'failed"}'}
        assert set(counted(url, "kdc_stopped").values()) == {0.0}


def test_what_is_answered_below_its_threshold_is_no_deferred_question(start: Callable[..., Any], stub: Stub) -> None:
    """Would catch a failing upstream that makes the artifact look better than it is."""
    stub.behaviour.faults = {"500": 1.0}
    with start(when_upstream_fails="answer") as url:
        assert source(url, HALF[0]) == "local"
        stub.behaviour.faults = {}
        assert source(url, SURE[0], ("mood",)) == "local"
        until(lambda: sum(counted(url, "kdc_audits_total").values()) >= 1)
        assert not [key for key in counted(url, "kdc_audits_total") if "deferred" in key]


def test_nothing_is_audited_at_a_share_of_nought(start: Callable[..., Any], stub: Stub) -> None:
    with start(audit=0) as url:
        for text in (SURE[0], UNSURE[0]):
            source(url, text)
        time.sleep(0.3)
        assert counted(url, "kdc_audits_total") == {}
    assert len(stub.asked) == 1
