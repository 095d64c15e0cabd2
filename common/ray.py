"""Ray, where it is asked for: joins a cluster, or starts Ray on this machine alone, quietly."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from kdc.common import machine
from kdc.common.errors import InputError, KdcError

_ANSWER_TIMEOUT_S = 10


@contextmanager
def connected(address: str | None, cores: int = 1) -> Iterator[Any]:
    """The module `ray`, connected; disconnected afterwards, unless it was connected before.

    Args:
        address: of a cluster, "auto" for the one that this machine is a node of; None: Ray on this machine alone.
        cores: that Ray on this machine alone takes at least to be there: so many were asked for.

    Raises:
        InputError: no cluster answers there.
        KdcError: Ray is not installed, or does not start on this machine.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is called
    # Ray's C++ side tells stderr of every actor that may restart, as if that were an error.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise KdcError(
            "Ray is not installed", given=f"no module {error.name}", remedy="pip install 'kdc[ray]'"
        ) from None
    if ray.is_initialized():
        yield ray
        return
    # "local": Ray by itself would join any cluster that happens to run on this machine.
    alone: dict[str, Any] = {"num_cpus": max(cores, machine.cores()["usable"]), "include_dashboard": False}
    try:
        _check_answers(address)
        with _without_stderr():  # what fails is raised
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({} if address else alone),
            )
    except (OSError, RuntimeError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        if not address:
            raise KdcError(
                "Ray does not start here", given=why, remedy="or --engine local, which needs none"
            ) from error
        raise InputError(
            f"no Ray cluster answers ({why})",
            given=f"--address {address}",
            remedy="`ray start --head` starts one; without --address, Ray runs on this machine alone",
        ) from None
    try:
        with redirect_stdout(sys.stderr):  # Ray prints of a lost node there; stdout is the result's alone
            yield ray
    finally:
        ray.shutdown()


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Also without what is written past Python: that the log level above was set."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check_answers(address: str | None) -> None:
    """See that somebody listens: Ray itself would try for a quarter of an hour.

    Raises:
        OSError: nobody does.
        ValueError: that is no address.
    """
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")
    if address is None or address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ValueError("the address is auto or HOST:PORT, on a node of the cluster")
    socket.create_connection((host, int(port)), _ANSWER_TIMEOUT_S).close()
