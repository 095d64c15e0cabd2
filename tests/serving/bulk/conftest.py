"""Fixtures of bulk scoring: a local S3."""

from collections.abc import Iterator
from typing import Any

import pytest
from local_s3 import running_s3


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    with running_s3() as system:
        yield system


@pytest.fixture
def bucket(store: Any) -> Iterator[Any]:
    """The store, with an empty bucket `rows`."""
    store.mkdir("rows")
    yield store
    store.rm("rows", recursive=True)
    type(store).clear_instance_cache()  # the next test's kdc is a process of its own
