"""What kdc replaces in other libraries. Nothing else in the repository does (tests/serving/http/test_patches.py).

Each patch names the versions that it was tested with, why it is there and where upstream stands. pyproject.toml has the
same bounds, and `make test-patches` tries the lowest and the highest of these versions.
"""

import io
import os
from pathlib import Path
from typing import Any

import prometheus_client.mmap_dict
import prometheus_client.values
import uvicorn.config


def speak_http_by(protocol: str) -> None:
    """Have uvicorn use this protocol where its caller names none.

    BentoML's workers and the servers of a Bento name none, and BentoML has no option for it. uvicorn's own protocol
    bounds neither the head of a request nor the time that it takes.

    Versions: uvicorn>=0.45,<0.55
    Upstream: https://github.com/bentoml/BentoML/issues/4671, https://github.com/Kludex/uvicorn/issues/157
    """
    uvicorn.config.HTTP_PROTOCOLS["auto"] = protocol


def allocate_metrics() -> None:
    """Have prometheus_client allocate the pages of its files.

    It makes its files long and empty and maps them into memory. On a full disk the first write to such a page is a
    SIGBUS, which ends the worker. Pages that are there cannot do that, and the lack of them is an error.

    Versions: prometheus-client>=0.20,<0.27
    Upstream: https://github.com/prometheus/client_python/issues/1199 (empty files). The SIGBUS has no issue there. The
        server had it too: https://github.com/prometheus/prometheus/issues/19017
    """
    prometheus_client.mmap_dict.open = _opened  # type: ignore[attr-defined]


def keep_metrics_in_memory() -> None:
    """Have prometheus_client write no file for metrics that are made from now on.

    It decides by an environment variable when it is imported. Whether a file can be written shows later.

    Versions: prometheus-client>=0.20,<0.27
    Upstream: https://github.com/prometheus/client_python/blob/master/prometheus_client/values.py (`get_value_class`)
    """
    prometheus_client.values.ValueClass = prometheus_client.values.MutexValue


class _Allocated(io.FileIO):
    """A file that has all its pages on the disk before they are written to."""

    def truncate(self, size: int | None = None) -> int:
        assert size is not None
        try:
            os.posix_fallocate(self.fileno(), 0, size)
        except OSError:
            if not os.fstat(self.fileno()).st_size:  # a new one: what adds up all files cannot read an empty one
                os.unlink(self.name)
            raise
        return size


def _opened(name: str, mode: str) -> Any:
    if mode != "a+b":
        return Path(name).open(mode)
    # Not to append: where a file system cannot allocate, the C library writes the pages, and refuses such files.
    return _Allocated(name, "r+", opener=lambda path, _: os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
