"""A local S3 in this process, without network or account."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def running_s3(key: str = "none", secret: str = "none") -> Iterator[Any]:
    """s3fs' file system on a server here. Addresses reach it by the environment alone, as a person's do."""
    moto = pytest.importorskip("moto.server", reason="needs moto: pip install 'kdc[test]'")
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs: pip install 'kdc[test]'")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_CONFIG_FILE": "/nowhere",
            "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
        }.items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        s3fs.S3FileSystem.clear_instance_cache()
        # A file system of its own: what kdc's remembers of a directory must not be helped along by the test.
        yield s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()
