"""Ray, where it is asked for: joins a cluster, or starts Ray on this machine alone, quietly."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import machine
from errors import InputError, KdcError


@contextmanager
def running_ray(address: str | None) -> Iterator[Any]:
    """The module `ray`, connected; disconnected afterwards, unless it was connected before.

    Args:
        address: of a cluster, "auto" for the one that this machine is a node of; None: Ray on this machine alone.

    Raises:
        InputError: no cluster answers there.
        KdcError: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise KdcError("Ray is not installed", given="--engine ray", remedy="pip install 'kdc[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    alone = {"num_cpus": machine.cores()["usable"], "include_dashboard": False} if address is None else {}
    try:
        _knock(address)
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **alone)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no Ray cluster answers ({str(error).splitlines()[0]})", given=f"--address {address}",
            remedy="`ray start --head` starts one; without --address, Ray runs on this machine alone",
        ) from None  # fmt: skip
    try:
        with redirect_stdout(sys.stderr):  # where Ray prints of a lost node; stdout is the result's alone
            yield ray
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Ray itself would try for minutes.

    Raises:
        OSError: nobody listens at HOST:PORT.
        ValueError: no port.
    """
    if address not in (None, "auto", "local"):
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=10).close()
