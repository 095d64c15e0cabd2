"""`kdc serve --upstream` before a stub of a decision model: who answers what, and how answers are merged."""

import json
import time
from collections.abc import Iterator

import httpx2
import pytest
from live import Process
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
    is_sure,
    local_row,
    post,
    question,
    wrong,
)

from benchmarks.serving.stub import in_a_thread
from benchmarks.serving.stub_answers import DECISIONS, INPUT_TOKENS, MODEL, OUTPUT_TOKENS, SYSTEM_ONE
from benchmarks.serving.stub_connection import Stub

OWN, CALLERS = "OWN-S3CRET", "CALLER-S3CRET"
AS_CALLER = {"authorization": f"Bearer {CALLERS}"}


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with in_a_thread(Stub()) as stub:
        yield stub


@pytest.fixture(scope="module")
def service(stub: Stub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    keys = {"KDC_UPSTREAM_KEY": OWN, "CALLERS_KEY": CALLERS}
    folder = tmp_path_factory.mktemp("fronted")
    with fronted(folder, stub, "--api-key-env", "CALLERS_KEY", KDC_UPSTREAM_PRICE="5", **keys) as process:
        yield process


@pytest.fixture(autouse=True)
def fresh(stub: Stub) -> None:
    stub.behaviour.event_s = 0.0
    stub.forget()


def sent(service: Process, path: str, body: object) -> httpx2.Response:
    reply = post(service.url, path, body, **AS_CALLER)
    assert reply.status_code == 200, reply.text
    return reply


def check(reply: httpx2.Response, path: str, text: str, sources: dict[str, str]) -> None:
    """Each answer is its source's to its question, in the order of `sources`."""
    given = answers(path, reply.json())
    assert list(given) == list(sources)
    assert {name: answer["x_source"] for name, answer in given.items()} == sources
    assert {name: problem for name in given if (problem := wrong(path, name, text, given[name]))} == {}


@pytest.mark.parametrize("path", PATHS)
def test_known_and_sure_questions_are_answered_here(service: Process, stub: Stub, path: str) -> None:
    reply = sent(service, path, asked(path, SURE[0], ("urgent", "mood")))
    check(reply, path, SURE[0], {"urgent": "local", "mood": "local"})
    assert reply.headers["x-kdc-source"] == "local"
    assert reply.json()["model"] == "urgent,mood"
    tokens = 2 * (len(SURE[0].split()) + 2)  # [CLS] and [SEP], in each artifact
    assert (reply.json()["usage"]["input_tokens"], reply.json()["usage"]["output_tokens"]) == (tokens, 0)
    assert not stub.asked


@pytest.mark.parametrize(("text", "names"), [(UNSURE[0], KNOWN), (SURE[0], ("late", "loud", "topic"))])
@pytest.mark.parametrize("path", PATHS)
def test_what_is_answered_nowhere_here_goes_upstream_byte_by_byte(
    service: Process, stub: Stub, path: str, text: str, names: tuple[str, ...]
) -> None:
    body = json.dumps(asked(path, text, names, x_more=[1.0, "\u00e9"]), indent=3).encode() + b"\n"
    reply = sent(service, path, body)
    check(reply, path, text, dict.fromkeys(names, "upstream"))
    assert reply.headers["x-kdc-source"] == "upstream"
    assert reply.headers["x-request-id"] == "stub"
    (request,) = stub.asked
    assert (request.method, request.target, request.body) == ("POST", path, body)
    assert reply.json()["model"] == MODEL
    assert reply.json()["usage"]["input_tokens"] == INPUT_TOKENS


@pytest.mark.parametrize("path", PATHS)
def test_answers_of_both_are_merged_in_the_requests_order(service: Process, stub: Stub, path: str) -> None:
    text, names = HALF[0], ("late", "mood", "urgent", "topic", "loud")
    body = asked(path, text, names, x_more={"a": 1})
    reply = sent(service, path, body)
    sources = {name: "local" if is_sure(name, text) else "upstream" for name in names}
    assert set(sources.values()) == {"local", "upstream"}
    check(reply, path, text, sources)
    assert (reply.headers["x-kdc-source"], reply.json()["model"]) == ("mixed", MODEL)
    (request,) = stub.asked  # one, with all that is not answered here
    assert request.document == asked(path, text, tuple(name for name in names if name != "mood"), x_more={"a": 1})
    usage, tokens = reply.json()["usage"], len(text.split()) + 2
    assert usage["input_tokens"] == INPUT_TOKENS + 2 * tokens  # the other artifact was asked as well, and was unsure
    assert usage["output_tokens"] == 4 * OUTPUT_TOKENS
    if path == DECISIONS:
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


@pytest.mark.parametrize("path", PATHS)
def test_the_upstream_may_answer_questions_that_only_it_understands(service: Process, stub: Stub, path: str) -> None:
    body = asked(path, SURE[0], ("mood",))
    box = {"type": "box", "instructions": "Where?"}
    questions = {"q": box} if path == SYSTEM_ONE else [box]
    raw = json.dumps(body | {"questions": questions, "assets": {"a": {"type": "image"}}}).encode()
    reply = sent(service, path, raw)
    assert reply.headers["x-kdc-source"] == "upstream"
    assert stub.asked[-1].body == raw
    assert "x_stub" in reply.text
    assert reply.json()["model"] == MODEL


@pytest.mark.parametrize("path", PATHS)
def test_what_is_no_json_or_too_large_goes_nowhere(service: Process, stub: Stub, path: str) -> None:
    for body in (b"{", b"", b"[" * 3000, b'"' + b"x" * (2 << 20) + b'"'):
        assert 400 <= post(service.url, path, body, **AS_CALLER).status_code < 500
    assert not stub.asked


def test_a_name_of_a_served_artifact_narrows_who_answers(service: Process, stub: Stub) -> None:
    body = asked(SYSTEM_ONE, SURE[0], KNOWN, model="mood")
    check(sent(service, SYSTEM_ONE, body), SYSTEM_ONE, SURE[0], {"mood": "local", "urgent": "upstream"})


def test_many_questions_at_once_are_not_mixed_up(service: Process) -> None:
    """Would catch answers by their place among the rest, and not in the request."""
    body = asked(SYSTEM_ONE, HALF[1], ())
    kinds = {f"{place} {name}": name for place in range(40) for name in NAMES}
    body["questions"] = {key: question(SYSTEM_ONE, name) for key, name in kinds.items()}
    given = sent(service, SYSTEM_ONE, body).json()["answers"]
    assert list(given) == list(kinds)
    assert {key for key, name in kinds.items() if wrong(SYSTEM_ONE, name, HALF[1], given[key])} == set()


def test_a_local_row_is_what_numpy_says(service: Process) -> None:
    """The oracle itself can fail."""
    given = sent(service, SYSTEM_ONE, asked(SYSTEM_ONE, SURE[0], ("mood",))).json()["answers"]["mood"]
    assert sum(local_row("mood", SURE[0])) == pytest.approx(1)
    assert wrong(SYSTEM_ONE, "mood", SURE[1], given)
    assert wrong(SYSTEM_ONE, "mood", SURE[0], given | {"x_source": "upstream"})


def test_other_routes_go_upstream_as_they_are(service: Process, stub: Stub) -> None:
    reply = httpx2.get(f"{service.url}/v1/files/a%2Fb?x=%20y&x=2", headers=AS_CALLER)
    assert reply.json() == {"method": "GET", "target": "/v1/files/a%2Fb?x=%20y&x=2", "body": ""}
    reply = post(service.url, "/v1/embeddings", b' {"input": "a"}', **AS_CALLER)
    assert (reply.headers["x-kdc-source"], reply.json()["body"]) == ("upstream", ' {"input": "a"}')
    assert set(stub.keys) == {f"Bearer {OWN}"}
    assert httpx2.get(f"{service.url}/other", headers=AS_CALLER).status_code == 404


def test_a_stream_of_events_comes_event_by_event(service: Process, stub: Stub) -> None:
    stub.behaviour.event_s = 0.1
    arrived: list[float] = []
    chat = {"stream": True, "messages": []}
    with httpx2.stream("POST", f"{service.url}/v1/chat/completions", json=chat, headers=AS_CALLER) as reply:
        assert reply.headers["content-type"] == "text/event-stream"
        text = ""
        for part in reply.iter_raw():
            arrived.append(time.monotonic())
            text += part.decode()
    assert text == "".join(f'data: {{"delta":"{number}"}}\n\n' for number in range(5)) + "data: [DONE]\n\n"
    assert arrived[-1] - arrived[0] > 0.3


def test_models_of_both_are_listed(service: Process) -> None:
    listed = httpx2.get(f"{service.url}/v1/models", headers=AS_CALLER).json()
    assert [each["id"] for each in listed["data"]] == [each["name"] for each in listed["models"]] == [*KNOWN, MODEL]


def test_questions_are_counted_by_who_answers_and_why(service: Process) -> None:
    def counted() -> dict[str, float]:
        lines = httpx2.get(f"{service.url}/metrics").text.splitlines()
        pairs = [line.rpartition(" ") for line in lines if line.startswith(("kdc_decisions_total", "kdc_saved"))]
        return {name: float(value) for name, _, value in pairs}

    before = counted()
    sent(service, SYSTEM_ONE, asked(SYSTEM_ONE, HALF[0], ("mood", "urgent", "late", "loud")))
    time.sleep(1.1)  # an exposition is kept for a second
    more = {name: value - before.get(name, 0.0) for name, value in counted().items() if value != before.get(name, 0.0)}
    assert more == pytest.approx(
        {
            'kdc_decisions_total{model="mood",reason="sure",source="local"}': 1,
            'kdc_decisions_total{model="urgent",reason="unsure",source="upstream"}': 1,
            'kdc_decisions_total{model="none",reason="unknown",source="upstream"}': 2,
            "kdc_saved_usd_total": 0.005,
        }
    )


def test_neither_keys_nor_texts_are_told(service: Process, stub: Stub) -> None:
    """The service's key goes upstream and nowhere else; the caller's goes nowhere."""
    replies = [sent(service, SYSTEM_ONE, asked(SYSTEM_ONE, text, NAMES)) for text in ("w1 T3XT", SURE[0])]
    replies.append(post(service.url, SYSTEM_ONE, {}, authorization="Bearer wrong"))
    assert replies[-1].status_code == 401
    assert dict(stub.keys) == {f"Bearer {OWN}": 2}
    told = [reply.text + str(reply.headers) for reply in replies]
    told += [service.printed(), httpx2.get(f"{service.url}/metrics").text, httpx2.get(f"{service.url}/docs.json").text]
    for secret in (OWN, CALLERS, "T3XT"):
        assert [secret in text for text in told] == [False] * len(told)
