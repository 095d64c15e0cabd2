"""`/v1/moderations` by OpenAI's own client, and what it refuses."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from bag_models import SINGLE, write_artifact
from live import running

from kdc.artifact.decision import OperatingPoint
from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import TaskInfo
from kdc.serving.engine.engine import Engine

TOXIC = TaskInfo(
    name="toxic",
    kind="multilabel",
    text="comment",
    labels=("insult", "self-harm", "threat"),
    points=(OperatingPoint(label="self-harm", threshold=0.6, aim="precision>=0.9"),),
)
FROM = np.array([0.5, 0.6, 0.5])


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("artifacts")
    return write_artifact(folder / "toxic", TOXIC), write_artifact(folder / "mood", SINGLE)


@pytest.fixture(scope="module")
def service(artifacts: tuple[Path, Path]) -> Iterator[str]:
    with running(f"toxic={artifacts[0]},mood={artifacts[1]}", max_texts=4) as url:
        yield url


@pytest.fixture(scope="module")
def client(service: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("given", ["w2", ["w4"], ["w1", "w2 w3", "w7"]])
def test_openais_client_gets_the_engines_answers(
    client: openai.OpenAI, artifacts: tuple[Path, Path], given: Any
) -> None:
    """Would catch scores under another label, a softmax over labels, and a text that is flagged by another's labels."""
    texts = [given] if isinstance(given, str) else given
    expected = Engine.load(artifacts[0], device="cpu", threads=1).predict(texts)
    assert {bool(each) for each in (expected >= FROM).ravel()} == {True, False}
    reply = client.moderations.create(input=given)
    assert reply.model == "toxic"
    assert len(reply.results) == len(texts)
    for result, row in zip(reply.results, expected, strict=True):
        scores = result.category_scores.model_dump(by_alias=True, exclude_unset=True)
        assert [scores[name] for name in TOXIC.labels] == pytest.approx(row.tolist(), abs=1e-6)
        on = result.categories.model_dump(by_alias=True, exclude_unset=True)
        assert [on[name] for name in TOXIC.labels] == (row >= FROM).tolist()
        assert result.flagged == bool(np.any(row >= FROM))


def test_the_model_may_be_named_and_the_answer_says_which_artifact_gave_it(
    client: openai.OpenAI, artifacts: tuple[Path, Path]
) -> None:
    reply = client.moderations.with_raw_response.create(input="w1", model="toxic")
    assert reply.headers["x-artifact"] == load_manifest(artifacts[0]).sha256[:16]
    with pytest.raises(openai.NotFoundError, match="it serves: toxic, mood"):
        client.moderations.create(input="w1", model="omni-moderation-latest")


def test_a_model_of_one_label_is_no_moderator(client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="multilabel"):
        client.moderations.create(input="w1", model="mood")


def test_openais_client_shows_what_the_gate_refuses(
    artifacts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client prints nothing but the status of an error in another shape."""
    monkeypatch.setenv("MODERATION_KEY", "secret")
    with (
        running(artifacts[0], api_key_env="MODERATION_KEY") as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client,
    ):
        with pytest.raises(openai.AuthenticationError, match="bearer token"):
            client.moderations.create(input="w1")
        right = client.with_options(api_key="secret")
        assert right.moderations.create(input="w1").model
        with pytest.raises(openai.NotFoundError, match="no such route"):
            right.files.list()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ([], 422),
        ({}, 422),
        ({"input": []}, 422),
        ({"input": [1]}, 422),
        ({"input": [{"type": "image_url", "image_url": {"url": "https://example.com"}}]}, 422),
        ({"input": "w1", "user": "me"}, 422),
        ({"input": ["w1"] * 5}, 422),
        ({"input": ["w1", " "]}, 400),
        ({"input": "w1", "model": 1}, 404),
    ],
)
def test_what_is_wrong_is_said(service: str, body: Any, status: int) -> None:
    reply = httpx2.post(f"{service}/v1/moderations", json=body)
    assert reply.status_code == status
    assert reply.json()["error"]["message"]
