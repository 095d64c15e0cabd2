"""Golden exchanges: what each client that people have sends, and what the service answers, as files in `exchanges/`.

The client is run against the service through a proxy that notes both. Would catch a dialect that drifts, and a new
version of a client that asks otherwise: then the file is to be made anew, after a look at what changed, by
`PYTHONPATH=tests python tests/serving/test_exchanges.py`.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from bag_models import SINGLE, write_artifact
from live import served

from kdc.artifact.manifest import TaskInfo

FOLDER = Path(__file__).parent / "exchanges"
TEXTS = ["w1 w2", "w3"]
ARTIFACTS = {
    "mood": SINGLE,
    "toxic": TaskInfo(name="toxic", kind="multilabel", text="comment", labels=("insult", "threat", "spam")),
}
_DIFFERS = ("id", "created", "model_version")  # keys of a reply that differ each time, or by the libraries


def huggingface_hub(url: str) -> None:
    code = (
        "import sys; from huggingface_hub import InferenceClient; "
        f"InferenceClient(sys.argv[1]).text_classification({TEXTS[0]!r}, top_k=2)"
    )
    # In a process of its own: it reads at import that it may ask addresses.
    subprocess.run([sys.executable, "-c", code, url], check=True, env={**os.environ, "HF_HUB_OFFLINE": "0"})


def bentoml(url: str) -> None:
    import bentoml

    with bentoml.SyncHTTPClient(url) as client:
        client.classify(texts=TEXTS)


def openai(url: str) -> None:
    import openai

    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        client.moderations.create(input=TEXTS, model="toxic")


def tritonclient(url: str) -> None:
    import tritonclient.http

    client = tritonclient.http.InferenceServerClient(url.removeprefix("http://"))
    given = tritonclient.http.InferInput("text", [len(TEXTS)], "BYTES")
    given.set_data_from_numpy(np.array(TEXTS, dtype=object), binary_data=False)
    outputs = [tritonclient.http.InferRequestedOutput(name, binary_data=False) for name in ("label", "probabilities")]
    client.infer("mood", [given], outputs=outputs)


# Of clients that need an environment of their own only the exchange is replayed; `test_kserve.py` runs KServe's.
CLIENTS: dict[str, Callable[[str], None] | None] = {
    "huggingface_hub": huggingface_hub,
    "bentoml": bentoml,
    "openai": openai,
    "tritonclient": tritonclient,
    "kserve": None,
    "semantic-router": None,  # its http_classifier.go
    "vllm": None,  # its examples' `requests.post`
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("artifacts")) as url:
        yield url


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    places = ",".join(f"{name}={write_artifact(folder / name, task)}" for name, task in ARTIFACTS.items())
    with served(folder, places, "--drain-delay", "0") as process:
        yield process.url


@contextlib.contextmanager
def noted(service: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a proxy before the service, and what was posted through it."""
    requests: list[dict[str, Any]] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.forward()

        def do_POST(self) -> None:
            self.forward()

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            kind = self.headers.get("content-type", "application/json")
            reply = httpx2.request(self.command, service + self.path, content=body, headers={"content-type": kind})
            if self.command == "POST":  # BentoML's client first asks whether the service is ready
                requests.append({"path": self.path, "type": kind, "body": json.loads(body)})
            self.send_response(reply.status_code)
            self.send_header("content-type", reply.headers["content-type"])
            self.send_header("content-length", str(len(reply.content)))
            self.end_headers()
            self.wfile.write(reply.content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join()


def kept(value: Any) -> Any:
    """A reply without what differs each time; numbers with as many digits as two processors agree on."""
    if isinstance(value, dict):
        return {key: kept(each) for key, each in value.items() if key not in _DIFFERS}
    if isinstance(value, list):
        return [kept(each) for each in value]
    return round(value, 5) if isinstance(value, float) else value


def golden(client: str) -> list[dict[str, Any]]:
    exchanges: list[dict[str, Any]] = json.loads((FOLDER / f"{client}.json").read_text(encoding="utf-8"))
    return exchanges


@pytest.mark.parametrize("client", [name for name, run in CLIENTS.items() if run])
def test_a_client_asks_as_it_did(service: str, client: str) -> None:
    run = CLIENTS[client]
    assert run is not None
    with noted(service) as (url, requests):
        run(url)
    assert requests == [each["request"] for each in golden(client)]


@pytest.mark.parametrize("client", CLIENTS)
def test_the_service_answers_as_it_did(service: str, client: str) -> None:
    for exchange in golden(client):
        assert answered(service, exchange["request"]) == exchange["reply"]


def answered(service: str, request: dict[str, Any]) -> dict[str, Any]:
    content, headers = json.dumps(request["body"]).encode(), {"content-type": request["type"]}
    reply = httpx2.post(service + request["path"], content=content, headers=headers)
    return {"status": reply.status_code, "body": kept(reply.json())}


def record() -> None:
    """Make all files anew: what the clients that can be run here send, and what the service answers to all."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as service:
        for client, run in CLIENTS.items():
            if run is None:
                requests = [each["request"] for each in golden(client)]
            else:
                with noted(service) as (url, requests):
                    run(url)
            made = [{"request": request, "reply": answered(service, request)} for request in requests]
            (FOLDER / f"{client}.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()
