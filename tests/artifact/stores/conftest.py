"""Fixtures of transfers: two artifacts, and a local S3."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
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
