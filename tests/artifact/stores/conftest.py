"""Fixtures of transfers: two artifacts, a local S3, a local hub, and BentoML's store."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_stub
import pytest
from hub_stub import TOKEN, Stub
from local_s3 import running_s3
from transfers import Traffic, make_artifact

from kdc.artifact.stores import files, hub


@pytest.fixture(autouse=True)
def small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of a tenth of their size, so that a small file takes several."""
    monkeypatch.setattr(files, "_REQUEST_BYTES", 800_000)
    monkeypatch.setattr(hub, "_CHUNK_BYTES", 100_000)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return make_artifact(tmp_path_factory.mktemp("transfer") / "artifact")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, of the same sizes."""
    return make_artifact(tmp_path_factory.mktemp("transfer") / "other", seed=1)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Any]:
    with running_s3("KEYID", "S3CRET") as system:
        yield system


@pytest.fixture
def bucket(s3_server: Any) -> Iterator[Any]:
    """The store, with an empty bucket `models`."""
    import s3fs

    s3_server.mkdir("models")
    yield s3_server
    s3_server.rm("models", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> Traffic:
    """Every call of the S3 client from here on."""
    client = pytest.importorskip("aiobotocore.client").AioBaseClient
    counted, original = Traffic(), client._make_api_call

    async def call(self: Any, operation: str, parameters: dict[str, Any]) -> Any:
        first = parameters.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0]
        counted.asked.append((operation, str(parameters.get("Key", "")).rpartition("/")[2], int(first)))
        return await original(self, operation, parameters)

    monkeypatch.setattr(client, "_make_api_call", call)
    return counted


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty store. BentoML reads BENTOML_HOME at its import alone, so the fixture replaces its store."""
    from bentoml._internal.configuration.containers import BentoMLContainer
    from bentoml._internal.models import ModelStore

    monkeypatch.setenv("KDC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "true")
    models = tmp_path / "home" / "models"
    models.mkdir(parents=True)
    BentoMLContainer.model_store.set(ModelStore(models))
    yield models
    BentoMLContainer.model_store.reset()


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stub]:
    """The hub that the library asks, with a token for it."""
    import huggingface_hub
    from huggingface_hub import constants, file_download, utils

    with hub_stub.hub() as stub:
        monkeypatch.setattr(constants, "ENDPOINT", stub.url)
        for place in (constants, file_download):  # the template is made of the endpoint when the library is imported
            template = stub.url + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(place, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own, which is not spoken here
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(hub, "_PAUSE_S", 0.01)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # What the library keeps of a session knows whether it was offline; versions name the way to drop it otherwise.
        drop = getattr(utils, "reset_sessions", None) or huggingface_hub.close_session
        drop()
        yield stub
        drop()
