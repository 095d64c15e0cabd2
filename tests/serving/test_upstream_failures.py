"""Whatever way the upstream fails, each request gets one answer: the right one, or an error in the API's form."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from live import Process, free_port, running
from upstreams import (
    HALF,
    KNOWN,
    NAMES,
    PATHS,
    SURE,
    UNSURE,
    answers,
    asked,
    fronted,
    is_error_of,
    post,
    write_artifacts,
    wrong,
)

from benchmarks.serving.faults import marks, soak
from benchmarks.serving.stub import in_a_thread
from benchmarks.serving.stub_answers import DECISIONS, SYSTEM_ONE
from benchmarks.serving.stub_connection import RETRY_AFTER, Behaviour, Stub

TIMEOUT_S = 0.5
STATUSES = {
    "429": 429,
    "500": 502,
    "503": 503,
    "redirect": 502,
    "reset": 502,
    "cut": 502,
    "json": 502,
    "missing": 502,
    "type": 502,
    "slow": 504,
    "large": 502,
}
SOURCES = ("200 local", "200 mixed", "200 upstream", "422", "429", "502", "503", "504")  # of the soak's outcomes
RETRIED = ("429", "503")  # by the client, after what the upstream says


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with in_a_thread(Stub(Behaviour(slow_s=2 * TIMEOUT_S, large_bytes=3 << 20))) as stub:
        yield stub


@pytest.fixture(scope="module")
def service(stub: Stub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with fronted(tmp_path_factory.mktemp("fronted"), stub, KDC_UPSTREAM_TIMEOUT_S=str(TIMEOUT_S)) as process:
        yield process


@pytest.fixture(autouse=True)
def sound(stub: Stub) -> Iterator[None]:
    """Afterwards the upstream answers, and is trusted."""
    stub.forget()
    yield
    stub.behaviour.faults = {}


def ends_well(url: str, path: str = SYSTEM_ONE) -> None:
    """An answer ends a row of failures."""
    assert post(url, path, asked(path, UNSURE[0], NAMES)).status_code == 200


@pytest.mark.parametrize("fault", STATUSES)
@pytest.mark.parametrize("path", PATHS)
def test_a_failure_has_its_status_in_the_apis_form(service: Process, stub: Stub, path: str, fault: str) -> None:
    stub.behaviour.faults = {fault: 1.0}
    reply = post(service.url, path, asked(path, HALF[0], NAMES))
    assert reply.status_code == STATUSES[fault], reply.text
    assert is_error_of(path, reply.content)
    assert reply.headers.get("retry-after") == (str(RETRY_AFTER) if fault in RETRIED else None)
    assert reply.headers["x-kdc-source"] == "upstream"
    assert "/elsewhere" not in stub.targets
    stub.behaviour.faults = {}
    ends_well(service.url, path)


@pytest.mark.parametrize("fault", ["cut", "slow", "500"])
def test_what_may_have_been_answered_is_sent_once(service: Process, stub: Stub, fault: str) -> None:
    ends_well(service.url)
    stub.behaviour.faults = {fault: 1.0}
    post(service.url, SYSTEM_ONE, asked(SYSTEM_ONE, UNSURE[0], NAMES, "once"))
    assert stub.ids["once"] == 1
    stub.behaviour.faults = {}
    ends_well(service.url)


def test_a_kept_connection_that_is_closed_costs_no_request(service: Process, stub: Stub) -> None:
    ends_well(service.url)
    stub.behaviour.faults = {"stale": 1.0}
    identities = [f"stale {number}" for number in range(6)]
    for identity in identities:
        assert post(service.url, SYSTEM_ONE, asked(SYSTEM_ONE, UNSURE[0], NAMES, identity)).status_code == 200
    assert stub.faults["stale"] == 6
    assert [stub.ids[identity] for identity in identities] == [2] * 6  # the second time on a new connection


def test_a_reply_in_small_chunks_is_read_whole(service: Process, stub: Stub) -> None:
    stub.behaviour.faults = {"chunked": 1.0}
    reply = post(service.url, SYSTEM_ONE, asked(SYSTEM_ONE, UNSURE[0], NAMES))
    assert all(not wrong(SYSTEM_ONE, name, UNSURE[0], answer) for name, answer in reply.json()["answers"].items())


@pytest.mark.parametrize("path", PATHS)
def test_the_upstreams_refusal_passes_unchanged(service: Process, stub: Stub, path: str) -> None:
    stub.behaviour.faults = {"422": 1.0}
    reply = post(service.url, path, asked(path, HALF[0], NAMES))
    direct = httpx2.post(stub.url + path, json=asked(path, HALF[0], NAMES))
    assert (reply.status_code, reply.content) == (direct.status_code, direct.content) == (422, direct.content)
    for _ in range(6):  # it is no failure
        assert post(service.url, path, asked(path, HALF[0], NAMES)).status_code == 422


@pytest.mark.parametrize("fault", ["500", "reset"])
def test_failures_in_a_row_end_the_asking_for_a_while(service: Process, stub: Stub, fault: str) -> None:
    stub.behaviour.faults = {fault: 1.0}
    for path in (*PATHS, *PATHS, SYSTEM_ONE):
        assert post(service.url, path, asked(path, UNSURE[0], NAMES)).status_code == 502
    stub.forget()
    for path in PATHS:
        reply = post(service.url, path, asked(path, UNSURE[0], NAMES))
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert is_error_of(path, reply.content)
        local = post(service.url, path, asked(path, SURE[0], KNOWN))  # what needs no upstream is answered
        assert local.headers["x-kdc-source"] == "local"
    assert not stub.asked
    stub.behaviour.faults = {}
    deadline = time.monotonic() + 5
    while post(service.url, SYSTEM_ONE, asked(SYSTEM_ONE, UNSURE[0], NAMES)).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ends_well(service.url)


def test_failures_are_counted_by_their_kind(service: Process, stub: Stub) -> None:
    kinds = {"429": "rate_limited", "500": "server_error", "cut": "broken", "slow": "timeout", "422": "client_error"}
    for fault in kinds:
        stub.behaviour.faults = {fault: 1.0}
        post(service.url, SYSTEM_ONE, asked(SYSTEM_ONE, UNSURE[0], NAMES))
        stub.behaviour.faults = {}
        ends_well(service.url)
    time.sleep(1.1)  # an exposition is kept for a second
    shown = httpx2.get(f"{service.url}/metrics").text
    for kind in (*kinds.values(), "ok", "open"):
        (count,) = [
            line for line in shown.splitlines() if line.startswith(f'kdc_upstream_seconds_count{{outcome="{kind}"')
        ]
        assert float(count.rpartition(" ")[2]) >= 1


@pytest.fixture(scope="module")
def answering(stub: Stub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service that answers by itself when the upstream fails."""
    folder = tmp_path_factory.mktemp("answering")
    more = {"audit": 0, "state_dir": str(folder), "upstream_timeout_s": TIMEOUT_S, "when_upstream_fails": "answer"}
    with running(write_artifacts(folder), upstream=stub.url, **more) as url:
        yield url


@pytest.mark.parametrize("fault", [fault for fault in STATUSES if fault != "slow"])
@pytest.mark.parametrize("path", PATHS)
def test_local_answers_take_the_place_of_the_upstreams_if_wanted(
    answering: str, stub: Stub, path: str, fault: str
) -> None:
    stub.behaviour.faults = {fault: 1.0}
    reply = post(answering, path, asked(path, HALF[0], KNOWN))
    assert (reply.status_code, reply.headers["x-kdc-source"]) == (200, "local")
    given = answers(path, reply.json())
    assert list(given) == list(KNOWN)
    assert {name: wrong(path, name, HALF[0], each) for name, each in given.items()} == dict.fromkeys(KNOWN, "")
    assert [each.get("x_below_threshold", False) for each in given.values()] == [False, True]
    unknown = post(answering, path, asked(path, HALF[0], (*KNOWN, "late")))
    assert unknown.status_code == STATUSES[fault]
    assert is_error_of(path, unknown.content)
    stub.behaviour.faults = {}
    ends_well(answering, path)


def test_a_refusal_is_not_answered_over(answering: str, stub: Stub) -> None:
    """The upstream lives: what it refuses is not a failure."""
    stub.behaviour.faults = {"422": 1.0}
    assert post(answering, DECISIONS, asked(DECISIONS, UNSURE[0], KNOWN)).status_code == 422


def test_where_nobody_listens_local_answers_go_on(tmp_path: Path) -> None:
    upstream = f"http://127.0.0.1:{free_port()}"
    with running(write_artifacts(tmp_path), upstream=upstream, state_dir=str(tmp_path), audit=0) as url:
        assert post(url, SYSTEM_ONE, asked(SYSTEM_ONE, UNSURE[0], KNOWN)).status_code == 502
        assert post(url, SYSTEM_ONE, asked(SYSTEM_ONE, SURE[0], KNOWN)).status_code == 200
        assert httpx2.get(f"{url}/v1/models").headers["x-kdc-source"] == "local"


def test_a_new_connection_that_is_reset_is_no_kept_one(stub: Stub, tmp_path: Path) -> None:
    """The upstream may have answered before it failed: it is not asked twice."""
    stub.behaviour.faults = {"reset": 1.0}
    with running(write_artifacts(tmp_path), upstream=stub.url, state_dir=str(tmp_path), audit=0) as url:
        assert post(url, SYSTEM_ONE, asked(SYSTEM_ONE, UNSURE[0], KNOWN, "new")).status_code == 502
    assert stub.ids["new"] == 1


def test_a_stream_that_stalls_is_broken_off(service: Process, stub: Stub) -> None:
    """A client must not take it for whole."""
    stub.behaviour.event_s = 10
    try:
        with pytest.raises(httpx2.RemoteProtocolError):
            httpx2.post(f"{service.url}/v1/chat/completions", json={"stream": True}, timeout=8)
    finally:
        stub.behaviour.event_s = 0.0
    ends_well(service.url)
    assert "Traceback" not in service.printed()


def test_a_client_that_leaves_does_not_stay_in_work(service: Process, stub: Stub) -> None:
    """Would catch an upstream that is blamed for its callers, and connections that are never given back."""
    stub.behaviour.delay_s = 0.4
    try:
        for _ in range(8):
            with pytest.raises(httpx2.ReadTimeout):
                httpx2.post(service.url + SYSTEM_ONE, json=asked(SYSTEM_ONE, UNSURE[0], NAMES), timeout=0.1)
    finally:
        stub.behaviour.delay_s = 0.0
    ends_well(service.url)


@pytest.mark.slow  # the short form of `benchmarks/upstream.py --faults`
def test_answers_are_right_under_load_whatever_fails(tmp_path: Path) -> None:
    seen = soak(15, tmp_path)
    assert seen.problems == []
    assert [mark.what for mark in marks(seen) if not mark.holds] == []
    assert seen.kills >= 2
    of = {name: sum(count for outcome, count in seen.outcomes.items() if name in outcome) for name in SOURCES}
    assert min(of.values()) > 10, seen.outcomes
