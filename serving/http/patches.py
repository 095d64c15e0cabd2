"""Patches of other libraries, all in this module (tests/serving/http/test_patches.py).

Each patch names its tested versions, as pyproject.toml does. `make test-patches` tries the lowest and the highest.
"""

import io
import os
from pathlib import Path
from typing import Any

import prometheus_client.mmap_dict
import prometheus_client.values
import uvicorn.config


def speak_http_by(protocol: str) -> None:
    """Have uvicorn use this protocol if its caller names none.

    BentoML names none and has no option for it.

    Versions: uvicorn>=0.45,<0.55
    Upstream: https://github.com/bentoml/BentoML/issues/4671, https://github.com/Kludex/uvicorn/issues/157
    """
    uvicorn.config.HTTP_PROTOCOLS["auto"] = protocol


def allocate_metrics() -> None:
    """Have prometheus_client allocate the pages of its files.

    It maps sparse files. On a full disk a write to a missing page is a SIGBUS, which ends the worker.

    Versions: prometheus-client>=0.20,<0.27
    Upstream: https://github.com/prometheus/client_python/issues/1199 (empty files). Prometheus itself had the SIGBUS:
    https://github.com/prometheus/prometheus/issues/19017
    """
    prometheus_client.mmap_dict.open = _opened  # type: ignore[attr-defined]


def keep_metrics_in_memory() -> None:
    """Have prometheus_client write no file for later metrics.

    prometheus_client decides at its import, before anyone knows whether files can be written.

    Versions: prometheus-client>=0.20,<0.27
    Upstream: https://github.com/prometheus/client_python/blob/master/prometheus_client/values.py (`get_value_class`)
    """
    prometheus_client.values.ValueClass = prometheus_client.values.MutexValue


class _Allocated(io.FileIO):
    def truncate(self, size: int | None = None) -> int:
        assert size is not None
        try:
            os.posix_fallocate(self.fileno(), 0, size)
        except OSError:
            if not os.fstat(self.fileno()).st_size:  # an empty file breaks the sum over workers
                os.unlink(self.name)
            raise
        return size


def _opened(name: str, mode: str) -> Any:
    if mode != "a+b":
        return Path(name).open(mode)
    # If the file system cannot allocate, the C library writes pages, which append mode prevents.
    return _Allocated(name, "r+", opener=lambda path, _: os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
