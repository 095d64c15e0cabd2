"""Fixtures of transfers: two artifacts, and a local S3."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transfers import Traffic, make_artifact


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
    """A file system on an S3 here, reached by the environment alone, as a person's is."""
    moto = pytest.importorskip("moto.server", reason="needs moto: pip install 'kdc[test]'")
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs: pip install 'kdc[test]'")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "KEYID",
            "AWS_SECRET_ACCESS_KEY": "S3CRET", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1", "AWS_CONFIG_FILE": "/nowhere", "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        s3fs.S3FileSystem.clear_instance_cache()
        yield s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


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

    async def call(self: Any, operation: str, given: dict[str, Any]) -> Any:
        first = given.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0]
        counted.asked.append((operation, str(given.get("Key", "")).rpartition("/")[2], int(first)))
        return await original(self, operation, given)

    monkeypatch.setattr(client, "_make_api_call", call)
    return counted
