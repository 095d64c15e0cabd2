"""What BentoML's code gets of what clients send: nothing. docs/reference/vulnerabilities.md names these tests."""

import contextlib
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from bag_models import write_artifact
from live import ROOT, free_port, served
from transfers import Bomb

from kdc.serving.engine.engine import Engine
from kdc.serving.http.api.routes import describe

# Asks the service, as BentoML knows it, what it has of what advisories name; and its front door, what it lets through.
FACTS = """
import asyncio, json
from _bentoml_impl.server.app import ServiceAppFactory
from kdc.serving.service import FrontDoor, service
service.inject_config()
(method,) = service.apis.values()
seen = []
async def bentoml(scope, receive, send):
    seen.append(scope["type"])
async def nothing(*message):
    return {"type": "http.disconnect"}
async def knock():
    routes = [route.path for route in ServiceAppFactory(service, is_main=True)().routes]
    for kind in ("http", "lifespan"):
        for path in routes:
            scope = {"type": kind, "path": path, "method": "GET", "headers": [], "query_string": b"", "root_path": ""}
            await FrontDoor(bentoml)(scope, nothing, nothing)
    return routes
routes = asyncio.run(knock())
print(json.dumps({
    "routes": routes,
    "let through": sorted(set(seen)),
    "remote": [*service.dependencies],
    "tasks": service.needs_task_db(),
    "mounted": [path for _, path, _ in service.mount_apps],
    "context": method.ctx_param,
    "files": [*method.input_spec.multipart_fields],
    "fields": [*method.input_spec.model_fields],
}))
"""
# Routes that BentoML has for other services: tasks, mounted apps, runners, pages.
OTHERS = [f"/classify/{name}" for name in ("submit", "status", "get", "retry", "cancel")]
OTHERS += ["/static_content/index.css", "/assets/index.js", "/run", "/api/classify"]
PICKLES = ["application/vnd.bentoml+pickle", "Application/VND.BentoML+Pickle; q=1", "application/vnd.bentoml.pickle"]
TYPES = [*PICKLES, "application/octet-stream", "application/vnd.bentoml+arrow", "application/json", "text/plain"]
TYPES += ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
# By these BentoML's runners know how their body is packed.
RUNNERS = {"Payload-Container": "NdarrayContainer", "Payload-Meta": '{"format": "default"}', "Args-Number": "1"}
RUNNERS |= {"Batch-Size": "1", "Bento-Name": "kdc", "Runner-Name": "kdc", "Buffer-Lengths": "9,9"}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("runs") / "mood" / "artifact")


@pytest.fixture(scope="module")
def facts(artifact: Path) -> dict[str, Any]:
    env = {**os.environ, "KDC_ARTIFACT": str(artifact), "OTEL_SDK_DISABLED": "true"}
    done = subprocess.run([sys.executable, "-c", FACTS], env=env, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module", params=["kdc serve", "bentoml serve"])
def url(request: pytest.FixtureRequest, artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("service")
    if request.param == "kdc serve":
        with served(folder, str(artifact), "--drain-delay", "0") as process:
            yield process.url
    else:
        with by_bentoml(folder, artifact) as address:
            yield address


@contextlib.contextmanager
def by_bentoml(folder: Path, artifact: Path) -> Iterator[str]:
    """`bentoml serve`, once it is ready."""
    port, log = free_port(), folder / "log"
    command = [str(Path(sys.executable).with_name("bentoml")), "serve", "kdc.serving.service:Classifier"]
    settings = {"KDC_ARTIFACT": str(artifact), "KDC_DEVICE": "cpu", "KDC_DRAIN_DELAY_S": "0"}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--host", "127.0.0.1"],
            cwd=ROOT,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **settings, "BENTOML_HOME": str(folder / "home")},
        )
    try:
        deadline, is_ready = time.monotonic() + 60, False
        while not is_ready:
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
            with contextlib.suppress(httpx2.TransportError):
                is_ready = httpx2.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def test_bentomls_app_gets_no_request(facts: dict[str, Any]) -> None:
    assert "/classify" in facts["routes"]
    assert facts["let through"] == ["lifespan"]


def test_the_service_has_nothing_that_bentoml_reads_unsafely(facts: dict[str, Any]) -> None:
    # No second service or runner, whose answers would be unpickled; no queue of tasks; no app within; no context and
    # no open keywords, which a body could set; no file, which a body could name by its address.
    for name in ("remote", "tasks", "mounted", "context", "files"):
        assert not facts[name], name
    assert facts["fields"] == ["texts", "model"]


def test_only_described_routes_are_answered(url: str, facts: dict[str, Any]) -> None:
    described = {*describe()["paths"], "/schema.json"}
    with httpx2.Client(base_url=url) as client:
        for path in {*facts["routes"], *OTHERS} - described:
            assert {client.request(method, path).status_code for method in ("GET", "POST", "PUT")} == {404}, path
        for path in ("/livez", "/readyz", "/healthz", "/schema.json", "/classify"):
            assert "bentoml" not in str(client.get(path).headers).lower()


@pytest.mark.parametrize("kind", TYPES)
def test_no_body_is_unpickled(url: str, facts: dict[str, Any], tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "mark"
    bomb = pickle.dumps(Bomb(mark))
    paths = {*facts["routes"], *OTHERS, "/predict", "/v2/models/mood/infer", "/v1/moderations"}
    with httpx2.Client(base_url=url) as client:
        for path in sorted(paths):
            reply = client.post(path, content=bomb, headers={"Content-Type": kind, **RUNNERS})
            assert reply.status_code in (400, 404, 405, 415), path
    assert not mark.exists()


def test_bentoml_would_still_unpickle_a_body(tmp_path: Path) -> None:
    from _bentoml_impl.serde import ALL_SERDE, PickleSerde
    from _bentoml_impl.serde import Payload as Body

    assert ALL_SERDE[PICKLES[0]] is PickleSerde, "take the advisory out of docs/reference/vulnerabilities.md"
    PickleSerde().deserialize_value(Body((pickle.dumps(Bomb(tmp_path / "mark")),)))
    assert (tmp_path / "mark").exists()


def test_both_ways_to_start_bound_what_a_connection_can_take(url: str) -> None:
    """Would catch uvicorn's own protocol, which takes headers of any size."""
    reply = httpx2.get(f"{url}/health", headers={"X-Large": "x" * 20_000})
    assert reply.status_code == 431
    assert "too large" in reply.json()["error"]


def test_both_ways_to_start_give_the_engines_answers(url: str, artifact: Path) -> None:
    expected = np.sort(Engine.load(artifact, device="cpu").predict(["w1"])[0])[::-1]
    reply = httpx2.post(f"{url}/predict", json={"inputs": "w1"})
    assert [entry["score"] for entry in reply.json()] == pytest.approx(expected.tolist(), abs=1e-6)
