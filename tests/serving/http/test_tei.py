"""The dialect of text-embeddings-inference: each form of body, each option, each error, against numpy's answer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from bag_models import PAIR, SINGLE, TYPED, expected_logits, write_artifact
from live import connect, running

from kdc.artifact.manifest import TaskInfo

FORM = "application/x-www-form-urlencoded"
MANY = TaskInfo(name="tags", kind="multilabel", labels=("x", "y", "z"))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(write_artifact(tmp_path_factory.mktemp("single")), max_texts=50, max_text_chars=2000) as url:
        yield url


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(write_artifact(tmp_path_factory.mktemp("pair"), PAIR, TYPED)) as url:
        yield url


def post(url: str, body: Any, **headers: str) -> httpx2.Response:
    if isinstance(body, bytes):
        return httpx2.post(f"{url}/predict", content=body, headers=headers)
    return httpx2.post(f"{url}/predict", json=body, headers=headers)


def softmax(logits: np.ndarray, temperature: float = 2.0) -> np.ndarray:
    exponentials = np.exp(logits / temperature)
    return exponentials / exponentials.sum()


def expected(*texts: str, task: TaskInfo = SINGLE) -> list[tuple[str, float]]:
    """Labels and scores, best first; the CPU serves the graph that is scaled by 1.01."""
    scores = softmax(expected_logits(*texts, scale=1.01, typed=len(texts) == 2))
    return sorted(zip(task.labels, scores.tolist(), strict=True), key=lambda entry: -entry[1])


def pairs_of(reply: list[dict[str, Any]]) -> list[tuple[str, float]]:
    return [(entry["label"], entry["score"]) for entry in reply]


def assert_same(reply: list[dict[str, Any]], best_first: list[tuple[str, float]]) -> None:
    assert [label for label, _ in pairs_of(reply)] == [label for label, _ in best_first]
    assert [score for _, score in pairs_of(reply)] == pytest.approx([score for _, score in best_first], abs=1e-5)


@pytest.mark.parametrize("inputs", ["w1 w2", ["w1 w2"]])
@pytest.mark.parametrize("path", ["/", "/predict"])
def test_one_text_gives_all_classes_best_first(single: str, path: str, inputs: Any) -> None:
    reply = httpx2.post(single + path, json={"inputs": inputs})
    assert reply.status_code == 200
    assert_same(reply.json(), expected("w1 w2"))


def test_a_batch_gives_a_list_for_each_text_in_order(single: str) -> None:
    reply = post(single, {"inputs": [["w1"], ["w2 w3 w4"], ["w5"]]}).json()
    for entry, text in zip(reply, ["w1", "w2 w3 w4", "w5"], strict=True):
        assert_same(entry, expected(text))


def test_a_batch_of_one_stays_a_batch(single: str) -> None:
    assert_same(post(single, {"inputs": [["w1"]]}).json()[0], expected("w1"))


def test_a_list_of_two_texts_is_one_pair(pair: str) -> None:
    assert_same(post(pair, {"inputs": ["w1 w2", "w3"]}).json(), expected("w1 w2", "w3", task=PAIR))


def test_a_batch_of_pairs(pair: str) -> None:
    reply = post(pair, {"inputs": [["w1", "w2"], ["w3", "w4 w5"]]}).json()
    assert_same(reply[1], expected("w3", "w4 w5", task=PAIR))


def test_a_pair_task_says_what_it_takes(pair: str) -> None:
    for inputs in ("w1", ["w1"], [["w1", "w2"], ["w3"]]):
        reply = post(pair, {"inputs": inputs})
        assert reply.status_code == 422
        assert "premise, hypothesis" in reply.json()["error"]


def test_a_single_text_task_says_what_it_takes(single: str) -> None:
    for inputs in (["w1", "w2"], [["w1"], ["w2", "w3"]]):
        reply = post(single, {"inputs": inputs})
        assert reply.status_code == 422
        assert "one text a row (sentence)" in reply.json()["error"]


def test_raw_scores_are_logits_before_the_temperature(single: str) -> None:
    reply = post(single, {"inputs": "w1 w2", "raw_scores": True}).json()
    logits = expected_logits("w1 w2", scale=1.01)
    assert {entry["label"]: entry["score"] for entry in reply} == pytest.approx(
        dict(zip(SINGLE.labels, logits.tolist(), strict=True)), abs=1e-5
    )


def test_top_k_leaves_the_best(single: str) -> None:
    reply = post(single, {"inputs": "w1", "parameters": {"top_k": 1}}).json()
    assert_same(reply[0], expected("w1")[:1])


def test_a_sigmoid_can_be_asked_for(single: str) -> None:
    reply = post(single, {"inputs": "w1", "function_to_apply": "sigmoid"}).json()
    sigmoids = 1 / (1 + np.exp(-expected_logits("w1", scale=1.01) / 2.0))
    assert sorted(entry["score"] for entry in reply) == pytest.approx(sorted(sigmoids.tolist()), abs=1e-5)


def test_multilabel_scores_are_sigmoids(tmp_path: Path) -> None:
    with running(write_artifact(tmp_path, MANY)) as url:
        reply = post(url, {"inputs": "w1"}).json()
    sigmoids = 1 / (1 + np.exp(-expected_logits("w1", scale=1.01) / 2.0))
    assert {entry["label"]: entry["score"] for entry in reply} == pytest.approx(
        dict(zip(MANY.labels, sigmoids.tolist(), strict=True)), abs=1e-5
    )


LONG = " ".join(f"w{number}" for number in range(12))  # the model takes 8 tokens, two of them special


def test_a_long_text_is_cut_at_the_end_and_says_so(single: str) -> None:
    reply = post(single, {"inputs": LONG})
    assert_same(reply.json(), expected("w0 w1 w2 w3 w4 w5"))
    assert (reply.headers["x-truncated-texts"], reply.headers["x-compute-tokens"]) == ("1", "8")


def test_the_side_of_the_cut_can_be_chosen(single: str) -> None:
    reply = post(single, {"inputs": LONG, "truncate": True, "truncation_direction": "Left"})
    assert_same(reply.json(), expected("w6 w7 w8 w9 w10 w11"))


def test_a_long_text_that_must_not_be_cut_is_refused(single: str) -> None:
    reply = post(single, {"inputs": [["w1"], [LONG]], "truncate": False})
    assert reply.status_code == 422
    assert "row 1" in reply.json()["error"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"inputs": "\xff"}', 400),
        (b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}", 422),
        (b'{"inputs": "\\ud800"}', 400),
        ([], 422),
        ({"inputs": None}, 422),
        ({"inputs": 7}, 422),
        ({"inputs": []}, 422),
        ({"inputs": [[]]}, 422),
        ({"inputs": [["w1", "w2", "w3"]]}, 422),
        ({"inputs": ["w1", "w2", "w3"]}, 422),
        ({"inputs": [["w1"], [3]]}, 422),
        ({"inputs": "w1", "truncate": "yes"}, 422),
        ({"inputs": "w1", "truncation_direction": "up"}, 422),
        ({"inputs": "w1", "top_k": 0}, 422),
        ({"inputs": "w1", "parameters": 3}, 422),
        ({"inputs": "w1", "function_to_apply": "tanh"}, 422),
        ({"input": "w1"}, 422),
        ({"inputs": "w1", "return_all": True}, 422),
        ({"inputs": [["w1"]] * 51}, 422),
        ({"inputs": "w" * 2001}, 422),
    ],
)
def test_an_error_is_one_json_object_and_the_next_request_works(single: str, body: Any, status: int) -> None:
    reply = post(single, body)
    assert reply.status_code == status
    assert set(reply.json()) == {"error", "error_type"}
    assert post(single, {"inputs": "w1"}).status_code == 200


@pytest.mark.parametrize("text", ["\x00", "\x1b[31m", "🙂 w1", "ما هذا w1", "\u202ew1"])
def test_strange_texts_have_an_answer(single: str, text: str) -> None:
    assert len(post(single, {"inputs": text}).json()) == 3


@pytest.mark.parametrize("blank", ["", " \n", "\u00a0" * 1500])
@pytest.mark.parametrize("path", ["/", "/predict", "/classify", "/v2/models/single/infer"])
def test_a_text_without_anything_to_read_is_refused_on_every_route(
    single: str, pair: str, path: str, blank: str
) -> None:
    """Would catch a route that answers it, and a half of a pair that is let through."""
    for url, rows in ((single, [["w1"], [blank]]), (pair, [["w1", "w2"], ["w1", blank]])):
        name = httpx2.get(f"{url}/info").json()["model_id"]
        tensor = {"name": "text", "datatype": "BYTES", "shape": [2, len(rows[0])], "data": rows}
        body = {"texts": rows} if path == "/classify" else {"inputs": [tensor] if path.startswith("/v2") else rows}
        reply = httpx2.post(url + path.replace("single", name), json=body)
        assert (reply.status_code, reply.json()["error_type"]) == (400, "Empty")
        assert "row 1" in reply.json()["error"]


def test_another_content_type_is_refused(single: str) -> None:
    reply = post(single, b"inputs=w1", **{"content-type": "text/plain"})
    assert (reply.status_code, reply.json()["error_type"]) == (415, "UnsupportedMediaType")


def test_curl_needs_no_content_type(single: str) -> None:
    reply = post(single, b'{"inputs": "w1"}', **{"content-type": FORM})
    assert_same(reply.json(), expected("w1"))


@pytest.mark.parametrize(
    ("kind", "origin"), [("text/plain", ""), ("multipart/form-data", ""), (FORM, "http://a"), ("", "null")]
)
@pytest.mark.parametrize("path", ["/predict", "/classify", "/v2/models/single/infer"])
def test_what_a_page_of_another_site_can_post_is_refused(single: str, path: str, kind: str, origin: str) -> None:
    """A browser asks no permission for these types, so that any page could use a service in its user's network."""
    headers = {name: value for name, value in (("content-type", kind), ("origin", origin)) if value}
    reply = httpx2.post(single + path, content=b'{"inputs": "w1"}', headers=headers)
    assert (reply.status_code, reply.json()["error_type"]) == (415, "UnsupportedMediaType")


def test_a_page_that_names_json_has_asked(single: str) -> None:
    reply = post(single, b'{"inputs": "w1"}', **{"content-type": "application/json", "origin": "http://a"})
    assert_same(reply.json(), expected("w1"))


def test_an_unknown_model_is_told_before_its_body_is_sent(single: str) -> None:
    with connect(single) as client:
        client.sendall(b"POST /predict/nobody HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert b" 404 " in client.recv(4096).split(b"\r\n", 1)[0]


def test_info_describes_the_task(pair: str) -> None:
    info = httpx2.get(f"{pair}/info").json()
    assert info["columns"] == ["premise", "hypothesis"]
    assert info["labels"] == ["a", "b", "c"]
    assert info["model_type"]["classifier"]["id2label"] == {"0": "a", "1": "b", "2": "c"}
    assert (info["max_input_length"], info["variant"]) == (8, "int8")


def test_classify_answers_what_bentomls_clients_send(single: str) -> None:
    reply = httpx2.post(f"{single}/classify", json={"texts": ["w1", ["w2 w3"]]}).json()
    assert_same(reply[1], expected("w2 w3"))
    assert httpx2.post(f"{single}/classify", json={"texts": []}).status_code == 422
    assert httpx2.post(f"{single}/classify", json={"texts": ["w1"], "model": "none"}).status_code == 404


@pytest.mark.parametrize("given", ["w1", ["w1", "w2 w3"], [["w1"]]])
def test_classify_answers_vllms_clients_in_its_shape(single: str, given: Any) -> None:
    """Catches scores in the order of the best, where vLLM has that of the labels, and a best label of another row."""
    name = httpx2.get(f"{single}/info").json()["model_id"]
    body = {"model": name, "input": given, "user": "somebody"}
    reply = httpx2.post(f"{single}/classify", json=body).json()
    texts = [given] if isinstance(given, str) else [row if isinstance(row, str) else row[0] for row in given]
    assert [row["index"] for row in reply["data"]] == list(range(len(texts)))
    for text, row in zip(texts, reply["data"], strict=True):
        scores = dict(expected(text))
        assert dict(zip(SINGLE.labels, row["probs"], strict=True)) == pytest.approx(scores, abs=1e-6)
        assert row["label"] == max(scores, key=scores.__getitem__)
        assert row["num_classes"] == len(scores)
    assert (reply["object"], reply["model"]) == ("list", name)
    tokens = int(post(single, {"inputs": [[text] for text in texts]}).headers["x-compute-tokens"])
    assert (reply["usage"]["prompt_tokens"], reply["usage"]["total_tokens"]) == (tokens, tokens)


def test_vllms_clients_can_ask_for_logits(single: str) -> None:
    raw = post(single, {"inputs": "w1", "raw_scores": True}).json()
    for asked in ({"use_activation": False, "raw_scores": None}, {"raw_scores": True, "use_activation": None}):
        (row,) = httpx2.post(f"{single}/classify", json={"input": "w1"} | asked).json()["data"]
        assert sorted(row["probs"]) == pytest.approx(sorted(each["score"] for each in raw), abs=1e-6)


def test_classify_answers_inputs_as_predict_does(single: str) -> None:
    for body in ({"inputs": "w1"}, {"inputs": [["w1"], ["w2"]]}, {"inputs": "w1", "parameters": {"top_k": 1}}):
        assert httpx2.post(f"{single}/classify", json=body).json() == post(single, body).json()


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"texts": ["w1"], "input": "w1"},
        {"input": [1, 2]},
        {"input": "w1", "top_k": 1},
        {"input": []},
        {"input": "w1", "raw_scores": True, "use_activation": 1},
    ],
)
def test_classify_says_what_is_wrong(single: str, body: Any) -> None:
    reply = httpx2.post(f"{single}/classify", json=body)
    assert (reply.status_code, reply.json()["error_type"]) == (422, "Validation")


def test_unknown_routes_and_methods_are_json_too(single: str) -> None:
    assert httpx2.get(f"{single}/nowhere").json()["error_type"] == "NotFound"
    wrong = httpx2.delete(f"{single}/predict")
    assert (wrong.status_code, wrong.json()["error_type"]) == (405, "MethodNotAllowed")
