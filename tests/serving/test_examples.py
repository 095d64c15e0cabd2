"""examples/: each client against the service, and its retries against a server that refuses."""

import asyncio
import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from bag_models import PAIR, write_artifact
from live import ROOT, free_port, running
from tiers import others_slow

from kdc.serving.engine.engine import Engine, Text

EXAMPLES = ROOT / "examples"
CLIENTS = {
    "client.py": [sys.executable],
    "client_async.py": [sys.executable],
    "client.mjs": ["node"],
    "curl.sh": ["bash"],
}
NEEDS = {"client.mjs": ("node",), "curl.sh": ("bash", "curl", "jq")}
WITHOUT_SERVICE = ("transformers.mjs",)  # needs a package of npm, so that it is run by hand
PYTHON = ("client.py", "client_async.py")
PAUSING = ("client_async.py", "client.mjs", "curl.sh")  # the last one pauses 7 s in all
TRIES = {"client.py": 5, "client_async.py": 5, "client.mjs": 5, "curl.sh": 4}
ROWS = 32
AT_ONCE = 8

every_client = pytest.mark.parametrize("client", CLIENTS)


def run(client: str, url: str, *texts: str, lines: str = "", token: str = "") -> subprocess.CompletedProcess[str]:
    missing = [program for program in NEEDS.get(client, ()) if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{client} needs {', '.join(missing)}")
    return subprocess.run(
        [*CLIENTS[client], str(EXAMPLES / client), *texts],
        input=lines,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "KDC_URL": url, "KDC_TOKEN": token, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
    )


def answers_of(done: subprocess.CompletedProcess[str]) -> list[tuple[str, float]]:
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    return [(label, float(score)) for label, score in lines]


def agree(answers: list[tuple[str, float]], artifact: Path, rows: Sequence[Text]) -> None:
    engine = Engine.load(artifact, device="cpu")
    expected = engine.predict(rows)
    assert [label for label, _ in answers] == [engine.labels[row.argmax()] for row in expected]
    assert [score for _, score in answers] == pytest.approx([row.max() for row in expected], abs=1e-4)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("runs") / "mood" / "artifact")


@pytest.fixture(scope="module")
def service(artifact: Path) -> Iterator[str]:
    """The address of a service that asks for a token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXAMPLE_TOKEN", "open sesame")
        with running(artifact, api_key_env="EXAMPLE_TOKEN") as url:
            yield url


@every_client
def test_texts_as_arguments(client: str, service: str, artifact: Path) -> None:
    texts = ["w1 w2", 'w3 "quoted" \\ w4', "ü €"]
    agree(answers_of(run(client, service, *texts, token="open sesame")), artifact, texts)


@every_client
def test_lines_of_standard_input_keep_their_order(client: str, service: str, artifact: Path) -> None:
    texts = [f"w{n % 20} w{n * 7 % 20}" for n in range(3 * ROWS + 5)]
    answers = answers_of(run(client, service, lines="\n \n\n".join(texts) + "\n", token="open sesame"))
    agree(answers, artifact, texts)


@every_client
def test_a_wrong_token_is_told_and_not_tried_again(client: str, service: str) -> None:
    done = run(client, service, "w1", token="wrong")
    assert (done.returncode, done.stdout) == (1, "")
    assert "bearer token" in done.stderr


@every_client
def test_the_texts_of_a_pair_are_separated_by_a_tab(client: str, tmp_path: Path) -> None:
    pairs = write_artifact(tmp_path / "artifact", task=PAIR)
    with running(pairs) as url:
        agree(answers_of(run(client, url, "w1\tw2", "w5 w6\tw7")), pairs, [("w1", "w2"), ("w5 w6", "w7")])
        alone = run(client, url, "w1")
    assert alone.returncode == 1
    assert "two texts" in alone.stderr


@dataclass
class Stub:
    """A server with scripted answers.

    Attributes:
        script: status and Retry-After for each request in turn; the last is repeated for ever.
        seconds: how long each answer takes.
        at: when each request came.
        connections: the connections on which they came.
        most_at_once: most requests in work at the same time.
    """

    script: list[tuple[int, str | None]]
    seconds: float = 0.0
    url: str = ""
    at: list[float] = field(default_factory=list)
    connections: set[Any] = field(default_factory=set)
    most_at_once: int = 0
    working: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextlib.contextmanager
def stub(*script: tuple[int, str | None], seconds: float = 0.0) -> Iterator[Stub]:
    state = Stub(list(script), seconds)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with state.lock:
                status, after = state.script[min(len(state.at), len(state.script) - 1)]
                state.at.append(time.monotonic())
                state.connections.add(self.client_address)
                state.working += 1
                state.most_at_once = max(state.most_at_once, state.working)
            time.sleep(state.seconds)
            with state.lock:
                state.working -= 1
            rows = body.count(b"[") - 1  # of [[text], [text]]
            answer = b"[%s]" % b",".join([b'[{"label":"good","score":0.75}]'] * rows)
            if status != 200:
                answer = b'{"error":"told why","error_type":"Any"}'
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                if after is not None:
                    self.send_header("Retry-After", after)
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


@every_client
def test_it_comes_back_when_it_was_told_to(client: str) -> None:
    with stub((429, "1"), (200, None)) as server:
        assert answers_of(run(client, server.url, "w1")) == [("good", 0.75)]
    first, second = server.at
    assert second - first >= 0.99


@pytest.mark.parametrize("client", ["client.py", *(pytest.param(each, marks=pytest.mark.slow) for each in PAUSING)])
def test_it_gives_up_after_some_tries(client: str) -> None:
    with stub((503, None)) as server:
        done = run(client, server.url, "w1")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(server.at) == TRIES[client]
    assert "told why" in done.stderr
    assert "503" in done.stderr
    assert "Traceback" not in done.stderr


@every_client
@pytest.mark.parametrize("status", others_slow([400, 424, 401, 404, 413, 422], fast=2))
def test_what_would_fail_again_is_not_tried_again(client: str, status: int) -> None:
    with stub((status, None), (200, None)) as server:
        done = run(client, server.url, "w1")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(server.at) == 1
    assert "told why" in done.stderr
    assert str(status) in done.stderr


@every_client
def test_it_does_not_wait_past_its_time(client: str) -> None:
    with stub((429, "3600")) as server:
        began = time.monotonic()
        done = run(client, server.url, "w1")
    assert done.returncode == 1
    assert len(server.at) == 1
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "client", ["client.py", *(pytest.param(each, marks=pytest.mark.slow) for each in PAUSING[:-1])]
)
def test_it_gives_up_where_nobody_listens(client: str) -> None:
    done = run(client, f"http://127.0.0.1:{free_port()}", "w1")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"gave up after {TRIES[client]} tries" in done.stderr
    assert "Traceback" not in done.stderr


# Node's fetch opens a second one while the first request is about to end.
@pytest.mark.parametrize(("client", "most"), [("client.py", 1), ("client.mjs", 2)])
def test_connections_are_kept(client: str, most: int) -> None:
    with stub((200, None)) as server:
        assert len(answers_of(run(client, server.url, lines="w1\n" * (10 * ROWS)))) == 10 * ROWS
    assert len(server.at) == 10
    assert len(server.connections) <= most


def test_requests_at_a_time_have_a_bound() -> None:
    with stub((200, None), seconds=0.05) as server:
        answers = answers_of(run("client_async.py", server.url, lines="w1\n" * (20 * ROWS)))
    assert len(answers) == 20 * ROWS
    assert len(server.at) == 20
    assert 1 < server.most_at_once <= AT_ONCE
    assert len(server.connections) <= AT_ONCE


@pytest.fixture(params=PYTHON)
def module(request: pytest.FixtureRequest) -> Any:
    spec = importlib.util.spec_from_file_location("example", EXAMPLES / request.param)
    assert spec is not None
    assert spec.loader is not None
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    return client


def ask(module: Any, url: str) -> Any:
    rows = [["w1"]]
    if module.__file__.endswith("client.py"):
        with httpx2.Client(base_url=url) as client:
            return module.classify(client, rows)

    async def once() -> Any:
        async with httpx2.AsyncClient(base_url=url, timeout=None) as client:
            return await module.classify(client, rows)

    return asyncio.run(once())


def test_the_seconds_of_all_tries_have_a_bound(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOTAL_S", 0.5)
    with stub((200, None), seconds=3) as server:
        began = time.monotonic()
        with pytest.raises(module.NoAnswer, match=r"gave up after 1 tries: .*Timeout"):
            ask(module, server.url)
        assert time.monotonic() - began < 2


def test_a_try_without_an_answer_is_repeated(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRY_S", 0.3)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.02)
    with stub((200, None), seconds=1.5) as server:
        with pytest.raises(module.NoAnswer, match="gave up after 5 tries"):
            ask(module, server.url)
        end = time.monotonic() + 5
        while len(server.at) < 5 and time.monotonic() < end:  # a busy machine may read the last one late
            time.sleep(0.01)
        assert len(server.at) == 5


def test_pauses_double_and_differ(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def longest(_: float, most: float) -> float:
        asked.append(most)
        return 0.0

    monkeypatch.setattr(module, "random", SimpleNamespace(uniform=longest))  # others may use the real one
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 1.0)
    with stub((503, None)) as server, pytest.raises(module.NoAnswer, match="503"):
        ask(module, server.url)
    assert asked == pytest.approx([0.2, 0.4, 0.8, 1.0, 1.0])


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("3", 3), ("", 0), ("soon", 0), ("-1", 0), ("²", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0), (None, 10)],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(module: Any, header: str | None, seconds: float) -> None:
    if header is None:
        import datetime

        header = format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=10), usegmt=True)
    reply = httpx2.Response(429, headers=[(b"Retry-After", header.encode("latin-1"))] if header else [])
    assert module.retry_after(reply) == pytest.approx(seconds, abs=1.5)


@pytest.mark.parametrize("path", sorted(filter(Path.is_file, EXAMPLES.iterdir())), ids=lambda path: path.name)
def test_an_example_says_at_its_beginning_what_it_does(path: Path) -> None:
    assert path.name in {*CLIENTS, *WITHOUT_SERVICE}
    beginning = path.read_text(encoding="utf-8").splitlines()[:5]
    does = "Classify texts with an artifact" if path.name in WITHOUT_SERVICE else "Classify texts with `kdc serve`"
    assert any(does in line for line in beginning)
    assert any(path.name in line for line in beginning)
