"""Models of many labels: replies are bounded before anything is computed, and are what they would be without bounds."""

import asyncio
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import orjson
import pytest
from bag_models import many_labels, write_artifact
from live import running

import kdc.serving.http.replies as replies
from kdc.serving.engine.engine import Engine
from kdc.serving.http.api.tei import labelled

LABELS, ROWS = 300, 60
TEXTS = [f"w{n % 20} w{n % 7}" for n in range(ROWS)]
V2 = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [ROWS], "data": TEXTS}]}
BINARY = V2 | {"parameters": {"binary_data_output": True}}
REPLY_BYTES = 200_000  # of the 18,000 scores fewer in JSON, and more as raw bytes


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("many")
    one = write_artifact(folder / "one", many_labels(LABELS), outputs=LABELS)
    return one, write_artifact(folder / "several", many_labels(LABELS, "multilabel"), outputs=LABELS)


@pytest.fixture(scope="module")
def url(artifacts: tuple[Path, Path]) -> Iterator[str]:
    with running(f"one={artifacts[0]},several={artifacts[1]}") as address:
        yield address


@pytest.fixture(scope="module")
def bounded(artifacts: tuple[Path, Path]) -> Iterator[str]:
    with running(f"one={artifacts[0]},several={artifacts[1]}", max_reply_bytes=REPLY_BYTES) as address:
        yield address


@pytest.mark.parametrize("top_k", [1, 5, 18, 19, LABELS, 2 * LABELS, None])
def test_the_best_labels_are_found_and_equal_ones_keep_their_order(top_k: int | None) -> None:
    outputs = np.random.default_rng(0).integers(-3, 3, (50, LABELS)).astype(np.float32)
    outputs[0], outputs[1] = 0.0, np.arange(LABELS)
    names = tuple(map(str, range(LABELS)))
    engine: Any = SimpleNamespace(labels=names)
    for listed, row in zip(labelled(engine, outputs, top_k), outputs.tolist(), strict=True):
        best = sorted(range(LABELS), key=lambda place, row=row: (-row[place], place))[:top_k]  # type: ignore[misc]
        assert [(entry["label"], entry["score"]) for entry in listed] == [(names[place], row[place]) for place in best]


@pytest.mark.parametrize("rows", [1, 3, 4, 9, 10])
def test_a_reply_in_pieces_is_the_whole_reply(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(replies, "_AT_ONCE", 9)  # three rows
    whole = [[{"label": "é", "score": np.float32(number).item() / 3}] for number in range(rows)]
    seen: list[int] = []

    def values(piece: slice) -> list[Any]:
        seen.append(len(whole[piece]))
        return whole[piece]

    assert asyncio.run(replies.written((rows, 3), values)) == orjson.dumps(whole)
    assert max(seen) <= 3


def test_others_have_turns_between_the_pieces_of_a_reply_of_many_rows() -> None:
    """Would catch a reply of as many rows as a request may have that is written at once, as soon as its answer is
    there."""
    events: list[str] = []

    def values(rows: slice) -> list[Any]:
        events.append("piece")
        return [0] * len(range(*rows.indices(1024)))

    async def answer() -> None:
        events.append("answer")
        await replies.written((1024, 2), values)

    async def beside_others() -> None:
        writing = asyncio.ensure_future(answer())
        while not writing.done():
            events.append("turn")
            await asyncio.sleep(0)

    asyncio.run(beside_others())
    own = " ".join(events).split("turn")
    assert max(len(turn.split()) for turn in own) == 1
    assert events.count("piece") > 1


def test_every_dialect_gives_all_scores_of_a_large_reply(url: str, artifacts: tuple[Path, Path]) -> None:
    expected = {
        name: Engine.load(artifact, device="cpu", threads=1).predict(TEXTS)
        for name, artifact in zip(("one", "several"), artifacts, strict=True)
    }
    places = {label: place for place, label in enumerate(many_labels(LABELS).labels)}

    def in_order(row: list[dict[str, Any]]) -> list[float]:
        assert [entry["score"] for entry in row] == sorted((entry["score"] for entry in row), reverse=True)
        return [entry["score"] for entry in sorted(row, key=lambda entry: places[entry["label"]])]

    def post(path: str, body: Any) -> Any:
        reply = httpx2.post(url + path, json=body, timeout=30)
        assert reply.status_code == 200, reply.text
        assert orjson.dumps(reply.json()) == reply.content  # each number with the digits that it needs
        return reply.json()

    rows = [[text] for text in TEXTS]
    got = {
        "predict": [in_order(row) for row in post("/predict", {"inputs": rows})],
        "texts": [in_order(row) for row in post("/classify", {"texts": TEXTS})],
        "input": [row["probs"] for row in post("/classify", {"input": TEXTS})["data"]],
        "v2": post("/v2/models/one/infer", V2)["outputs"][1]["data"],
    }
    for name, scores in got.items():
        np.testing.assert_allclose(np.reshape(scores, (ROWS, LABELS)), expected["one"], atol=1e-6, err_msg=name)
    assert [row["index"] for row in post("/classify", {"input": TEXTS})["data"]] == list(range(ROWS))
    results = post("/v1/moderations", {"model": "several", "input": TEXTS})["results"]
    moderated = [list(result["category_scores"].values()) for result in results]
    np.testing.assert_allclose(moderated, expected["several"], atol=1e-6)
    binary = httpx2.post(f"{url}/v2/models/one/infer", json=BINARY)
    raw = binary.content[-4 * ROWS * LABELS :]
    np.testing.assert_allclose(np.frombuffer(raw, "<f4").reshape(ROWS, LABELS), expected["one"], atol=1e-6)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", {"inputs": [[text] for text in TEXTS]}),
        ("/predict", {"inputs": [[text] for text in TEXTS], "top_k": 60}),
        ("/classify", {"texts": TEXTS}),
        ("/classify", {"input": TEXTS}),
        ("/v1/moderations", {"model": "several", "input": TEXTS}),
        ("/v2/models/one/infer", V2),
    ],
)
def test_a_reply_that_is_too_large_is_refused_before_anything_is_computed(bounded: str, path: str, body: Any) -> None:
    def answered() -> list[str]:
        return re.findall(r"^kdc_batch_rows_count.*$", httpx2.get(f"{bounded}/metrics").text, re.MULTILINE)

    before = answered()
    reply = httpx2.post(bounded + path, json=body)
    message = reply.json()["error"] if not path.startswith("/v1") else reply.json()["error"]["message"]
    assert (reply.status_code, reply.json()["error_type"]) == (413, "TooLarge")
    assert f"given: {ROWS * body.get('top_k', LABELS)} scores" in message
    assert "at most" in message
    assert "top_k" in message
    assert answered() == before


def test_what_a_refusal_advises_is_answered(bounded: str) -> None:
    few = httpx2.post(f"{bounded}/predict", json={"inputs": [[text] for text in TEXTS], "top_k": 5})
    assert [len(row) for row in few.json()] == [5] * ROWS
    fewer = httpx2.post(f"{bounded}/predict", json={"inputs": [[text] for text in TEXTS[:9]]})
    assert [len(row) for row in fewer.json()] == [LABELS] * 9
    assert httpx2.post(f"{bounded}/v2/models/one/infer", json=BINARY).status_code == 200
    labels = httpx2.post(f"{bounded}/v2/models/one/infer", json=V2 | {"outputs": [{"name": "label"}]}).json()
    assert labels["outputs"][0]["data"] == [row[0]["label"] for row in few.json()]


def test_replies_in_work_are_bounded_together_and_small_ones_are_let_in(
    artifacts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    began, ended, run = threading.Event(), threading.Event(), Engine.run

    def held(self: Engine, encodings: Any) -> Any:
        began.set()
        ended.wait(20)
        return run(self, encodings)

    large = {"inputs": [[text] for text in TEXTS], "top_k": 1}
    monkeypatch.setattr(Engine, "warm_up", lambda self, tokens: None)
    monkeypatch.setattr(Engine, "run", held)
    monkeypatch.setattr(Engine, "run_beside", held)
    with running(artifacts[0], max_bodies_bytes=500_000) as url, ThreadPoolExecutor() as pool:
        first = pool.submit(httpx2.post, f"{url}/predict", json=large, timeout=30)
        assert began.wait(20)
        second = httpx2.post(f"{url}/predict", json=large)
        small = pool.submit(httpx2.post, f"{url}/predict", json={"inputs": "w1"}, timeout=30)
        ended.set()
        assert [reply.result().status_code for reply in (first, small)] == [200, 200]
        assert (second.status_code, second.headers["retry-after"]) == (429, "1")
        assert httpx2.post(f"{url}/predict", json=large).status_code == 200  # the bytes are free again
        twice = httpx2.post(f"{url}/predict", json={"inputs": large["inputs"] * 2, "top_k": 1})  # type: ignore[operator]
        assert twice.status_code == 413
        assert "too many texts for a model of 300 labels; given: 120; at most 68" in twice.json()["error"]
