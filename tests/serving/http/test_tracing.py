"""Traces: what spans hold, whose children they are, and that they cost nothing where they are off."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from bag_models import write_artifact
from live import free_port, running, served
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from kdc.artifact.folder import load_manifest
from kdc.common.errors import InputError
from kdc.serving.engine.engine import Engine
from kdc.serving.http import settings, tracing
from kdc.serving.http.queue import Queue

CALLER, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@dataclass
class Span:
    """One span as a collector gets it, numbers as numbers."""

    name: str
    trace: str
    id: str
    parent: str
    began: int
    ended: int
    status: int
    attributes: dict[str, Any]


@dataclass
class Collector:
    """An OTLP receiver over HTTP; while `held` it takes requests and answers none."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def spans(self) -> list[Span]:
        """All that came, by their beginnings."""
        spans = [
            Span(
                span.name,
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                span.start_time_unix_nano,
                span.end_time_unix_nano,
                span.status.code,
                _plain(span.attributes),
            )
            for resource in self._resources()
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        return sorted(spans, key=lambda span: span.began)

    @property
    def resource(self) -> dict[str, Any]:
        """Of the first body."""
        return _plain(self._resources()[0].resource.attributes)

    def named(self, name: str) -> list[Span]:
        """The spans of that name."""
        return [span for span in self.spans if span.name == name]

    def _resources(self) -> list[Any]:
        return [each for body in self.bodies for each in ExportTraceServiceRequest.FromString(body).resource_spans]


def _plain(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Traces are on, and go there."""
    got = Collector()
    got.released.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.released.wait(30)
            assert self.path == "/v1/traces"
            got.bodies.append(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    got.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", got.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")  # spans come by the flush at the end alone
    yield got
    got.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("runs") / "mood" / "artifact")


def ask(url: str, inputs: Any = "w1 w2", **headers: str) -> httpx2.Response:
    return httpx2.post(f"{url}/predict", json={"inputs": inputs}, headers=headers, timeout=30)


def test_a_request_is_a_child_of_its_callers_span_and_a_parent_of_its_parts(
    artifact: Path, collector: Collector
) -> None:
    before = time.time_ns()
    with running(artifact) as url:
        assert ask(url, traceparent=f"00-{CALLER}-{PARENT}-01").status_code == 200
    request, *parts = collector.spans
    assert (request.name, request.trace, request.parent) == ("POST /predict", CALLER, PARENT)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "kdc.model": "mood",
        "kdc.artifact": load_manifest(artifact).sha256[:16],
        "kdc.rows": 1,
        "kdc.tokens": 4,
        "kdc.truncated_rows": 0,
    }
    assert [span.name for span in parts] == ["tokenise", "queue", "session"]
    assert {(span.trace, span.parent) for span in parts} == {(CALLER, request.id)}
    tokenise, queue, session = parts
    assert before < request.began <= tokenise.began <= tokenise.ended <= queue.began <= queue.ended
    assert queue.ended == session.began <= session.ended <= request.ended < time.time_ns()
    assert tokenise.attributes == {"kdc.tokens": 4, "kdc.truncated_rows": 0}
    batch = session.attributes.pop("kdc.batch.id")
    own = {"kdc.rows": 1, "kdc.tokens": 4}
    assert queue.attributes == {**own, "kdc.batch.id": batch}
    assert session.attributes == {**own, "kdc.model": "mood", "kdc.batch.rows": 1, "kdc.batch.tokens": 4}


def test_spans_of_a_pass_keep_order_and_length_while_the_clock_is_set_back(
    artifact: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        hours, perf_counter_ns = 0, staticmethod(time.perf_counter_ns)

        def time_ns(self) -> int:
            self.hours += 1
            return time.time_ns() - self.hours * 3600 * 10**9

    monkeypatch.setattr(tracing, "time", Clock())
    with running(artifact) as url:
        assert ask(url).status_code == 200
    (queue,), (session,) = collector.named("queue"), collector.named("session")
    assert queue.began <= queue.ended == session.began < session.ended < session.began + 30 * 10**9


def test_the_service_has_a_name_that_the_environment_may_change(
    artifact: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(artifact) as url:
        ask(url)
    assert collector.resource["service.name"] == "kdc"
    collector.bodies.clear()
    monkeypatch.setenv("OTEL_SERVICE_NAME", "reviews")
    with running(artifact) as url:
        ask(url)
    assert collector.resource["service.name"] == "reviews"


def test_rows_that_are_spread_over_passes_have_a_pair_of_spans_for_each(artifact: Path, collector: Collector) -> None:
    with running(artifact, max_batch_tokens=8) as url:
        assert ask(url, [[f"w{n}"] for n in range(5)]).status_code == 200
    sessions, queues = collector.named("session"), collector.named("queue")
    assert len(sessions) == len(queues) >= 3  # three tokens a row
    assert sum(span.attributes["kdc.rows"] for span in sessions) == 5
    batches = [span.attributes["kdc.batch.id"] for span in sessions]
    assert len(set(batches)) == len(batches)
    assert {span.attributes["kdc.batch.id"] for span in queues} == set(batches)


def test_requests_that_share_a_pass_tell_the_same_batch(
    artifact: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    running_now, go, arrived = threading.Event(), threading.Event(), []
    run, add = Engine.run, Queue.add

    def held(self: Engine, encodings: Any) -> Any:
        running_now.set()
        assert go.wait(20)
        return run(self, encodings)

    def noted(self: Queue, row: Any) -> None:
        arrived.append(row)
        add(self, row)

    monkeypatch.setattr(Engine, "warm_up", lambda self, tokens: None)
    monkeypatch.setattr(Engine, "run", held)
    monkeypatch.setattr(Queue, "add", noted)
    with running(artifact) as url, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, url)]
        assert running_now.wait(10)
        asked += [pool.submit(ask, url, "w3"), pool.submit(ask, url, "w4")]
        deadline = time.monotonic() + 10
        while len(arrived) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        go.set()
        assert {each.result().status_code for each in asked} == {200}
    alone, *together = collector.named("session")
    assert len({span.attributes["kdc.batch.id"] for span in together}) == 1
    assert alone.attributes["kdc.batch.id"] != together[0].attributes["kdc.batch.id"]
    assert [(span.attributes["kdc.rows"], span.attributes["kdc.batch.rows"]) for span in together] == [(1, 2)] * 2
    assert len({span.trace for span in together}) == 2


def test_no_text_token_path_or_header_is_in_what_is_sent(
    artifact: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Engine.run

    def may_fail(self: Engine, encodings: Any) -> Any:
        if len(encodings[0]) > 5:
            raise ValueError("hushhush is what the texts were")
        return run(self, encodings)

    monkeypatch.setattr(Engine, "run", may_fail)
    monkeypatch.setattr(Engine, "run_beside", may_fail)
    monkeypatch.setattr(Engine, "warm_up", lambda self, tokens: None)
    monkeypatch.setenv("MY_KEY", "hushhush-key")
    secret = {
        "Authorization": "Bearer hushhush-key",
        "User-Agent": "hushhush",
        "Cookie": "hushhush",
        "X-Mine": "hushhush",
        "tracestate": "mine=hushhush",
        "baggage": "user=hushhush",
        "traceparent": f"00-{CALLER}-{PARENT}-01",
    }
    with running(artifact, api_key_env="MY_KEY") as url:
        statuses = [
            ask(url, "hushhush w1", **secret).status_code,
            ask(url, "hushhush w1 w2 w3 w4 w5", **secret).status_code,  # the pass fails
            ask(url, ["hushhush", "a pair"], **secret).status_code,
            ask(url, "hushhush", Authorization="Bearer hushhush-wrong").status_code,
            httpx2.post(f"{url}/hushhush?hushhush", headers=secret).status_code,
            httpx2.request("MKCOL", f"{url}/predict?hushhush", headers=secret).status_code,
            httpx2.post(f"{url}/v2/models/hushhush/infer", headers=secret, content=b"hushhush").status_code,
        ]
    requests = [span for span in collector.spans if "http.request.method" in span.attributes]
    assert [span.attributes["http.response.status_code"] for span in requests] == statuses
    assert statuses == [200, 500, 422, 401, 404, 405, 404]
    assert requests[5].attributes["http.request.method"] == "_OTHER"
    assert [span.status for span in requests] == [0, 2, 0, 0, 0, 0, 0]
    assert [span.status for span in collector.named("session")] == [0, 2]
    assert not any(b"hushhush" in body.lower() for body in collector.bodies)


def test_probes_are_not_traced_and_refused_requests_are(
    artifact: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "key")
    with running(artifact, api_key_env="MY_KEY") as url:
        for path in ("/health", "/metrics", "/v2/health/live", "/"):
            httpx2.get(url + path)
        assert ask(url).status_code == 401
    (refused,) = collector.spans
    assert refused.name == "POST"
    assert refused.attributes["http.response.status_code"] == 401


@pytest.mark.parametrize(
    ("sampler", "argument", "traced"),
    [
        ("", "", [True, True, False]),
        ("always_off", "", [False, False, False]),
        ("always_on", "", [True, True, True]),
        ("parentbased_traceidratio", "0", [False, True, False]),
    ],
)
def test_the_environments_sampler_decides_what_is_traced(
    artifact: Path,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    sampler: str,
    argument: str,
    traced: list[bool],
) -> None:
    if sampler:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    with running(artifact) as url:
        ask(url)
        ask(url, traceparent=f"00-{CALLER}-{PARENT}-01")
        ask(url, traceparent=f"00-{CALLER[::-1]}-{PARENT}-00")
    spans = collector.spans
    assert len(spans) == 4 * sum(traced)
    traces = {span.trace for span in spans}
    assert [bool(traces - {CALLER, CALLER[::-1]}), CALLER in traces, CALLER[::-1] in traces] == traced


@pytest.mark.parametrize("parent", ["nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "", "\xe9" * 400])
def test_a_wrong_traceparent_begins_a_trace_of_its_own(artifact: Path, collector: Collector, parent: str) -> None:
    with running(artifact) as url:
        headers = [(b"traceparent", parent.encode("latin-1"))]
        reply = httpx2.post(f"{url}/predict", json={"inputs": "w1"}, headers=headers)
        assert reply.status_code == 200
    request = collector.spans[0]
    assert request.parent == ""
    assert int(request.trace, 16)


@pytest.mark.parametrize("kind", ["refuses", "hangs"])
def test_a_dead_collector_neither_slows_nor_breaks_answers(
    artifact: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    collector.released.clear()
    if kind == "refuses":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    with running(artifact) as url, httpx2.Client() as client:
        took = []
        for _ in range(40):  # ten times what the queue holds
            began = time.perf_counter()
            assert client.post(f"{url}/predict", json={"inputs": "w1"}).status_code == 200
            took.append(time.perf_counter() - began)
        leaving = time.monotonic()
    assert time.monotonic() - leaving < 5
    assert sorted(took)[20] < 0.1


SILENT = """
import asyncio, json, os, sys
import httpx2
from kdc.serving.http.api.app import make_app
from kdc.serving.http.settings import ServeSettings

async def answer_one_request():
    app = make_app(ServeSettings(artifact=sys.argv[1], device="cpu", threads=1))
    async with app.router.lifespan_context(app):
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://here") as client:
            assert (await client.post("/predict", json={"inputs": "w1"})).status_code == 200

for environment in json.loads(sys.argv[2]):
    os.environ.update(environment)
    asyncio.run(answer_one_request())
    ours = "kdc.serving.http.tracing"
    print([name for name in sys.modules if name.partition(".")[0] == "opentelemetry" or name == ours])
    for name in environment:
        del os.environ[name]
"""


def test_nothing_of_opentelemetry_is_imported_where_traces_are_off(artifact: Path) -> None:
    off = [
        {},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"},
    ]
    done = subprocess.run(
        [sys.executable, "-c", SILENT, str(artifact), json.dumps(off)],
        env={},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["[]"] * len(off)


def test_kdc_serve_sends_and_prints_each_request_once_in_its_drain(
    artifact: Path, collector: Collector, tmp_path: Path
) -> None:
    with served(tmp_path, str(artifact), "--drain-delay", "0.2", OTEL_TRACES_EXPORTER="otlp,console") as process:
        assert ask(process.url, traceparent=f"00-{CALLER}-{PARENT}-01").status_code == 200
        assert httpx2.get(f"{process.url}/readyz").status_code == 200  # without a span
        assert collector.bodies == []
        assert process.stop() == 0
        printed = process.printed()
    names = ["POST /predict", "tokenise", "queue", "session"]
    assert [span.name for span in collector.spans] == names
    assert [printed.count(f'"name": "{name}"') for name in names] == [1] * 4


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER=zipkin"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "host:4318"}, "http://HOST:4318"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "host:4318"}, "/v1/traces"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_the_start(environment: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings.trace_exporters(environment)


def test_a_missing_exporter_names_its_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(settings._EXPORTERS, "otlp", "opentelemetry.exporter.elsewhere.trace_exporter:Exporter")
    with pytest.raises(InputError, match=r"pip install 'kdc\[otel\]'"):
        settings.trace_exporters({"OTEL_TRACES_EXPORTER": "otlp"})


def test_both_exporters_may_be_asked_for() -> None:
    exporters = settings.trace_exporters({"OTEL_TRACES_EXPORTER": " OTLP, console,otlp,none"})
    assert list(exporters) == ["otlp", "console"]
