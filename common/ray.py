"""Connects to Ray."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from kdc.common.cores import usable_cores
from kdc.common.errors import InputError, KdcError, installing

_ANSWER_TIMEOUT_S = 10


@contextmanager
def connected(address: str | None, cores: int = 1) -> Iterator[Any]:
    """Connect to Ray for the block, unless connected; yields the module `ray`.

    Args:
        address: a cluster's, or "auto" for this machine's cluster; None: this machine alone.
        cores: least cores to offer on this machine alone.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray reports every restartable actor on stderr.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise KdcError("Ray is not installed", given=f"no module {error.name}", remedy=installing("ray")) from None
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"address": address}
    if not address:  # else Ray joins any local cluster
        options = {"address": "local", "num_cpus": max(cores, usable_cores()), "include_dashboard": False}
    try:
        _check_answers(address)
        with _without_stderr():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, RuntimeError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        if not address:
            remedy = "use --engine local, which needs no Ray"
            raise KdcError("Ray does not start on this machine", given=why, remedy=remedy) from error
        remedy = "`ray start --head` starts one; without --address, Ray runs on this machine alone"
        raise InputError(f"no Ray cluster answers ({why})", given=f"--address {address}", remedy=remedy) from None
    try:
        with redirect_stdout(sys.stderr):  # Ray prints lost nodes to stdout
            yield ray
    finally:
        ray.shutdown()


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Discard stderr, even from C++."""
    sys.stderr.flush()
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


def _check_answers(address: str | None) -> None:
    """Fail fast: Ray itself tries for 15 minutes."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS")
    if address is None or address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ValueError("the address is auto or HOST:PORT, on a node of the cluster")
    socket.create_connection((host, int(port)), _ANSWER_TIMEOUT_S).close()
