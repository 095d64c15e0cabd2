"""Ray, where it is asked for: joins a cluster or starts Ray on this machine alone, quietly, and shares it out."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

from artifact import Device
from errors import InputError, KdcError
from serving.session import usable_cores

_ANSWER_TIMEOUT_S = 10


@dataclass(frozen=True)
class Actors:
    """How a job is shared out.

    Attributes:
        count: actors, each with its own model.
        threads: of each; as many cores are kept for it.
        device: what each runs on, never "auto": all answer alike.
    """

    count: int
    threads: int
    device: Device

    @property
    def gpus(self) -> int:
        """GPUs of each."""
        return 0 if self.device == "cpu" else 1


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
        import ray.data
    except ModuleNotFoundError as error:
        raise KdcError(
            "Ray is not installed", given=f"no module {error.name}", remedy="pip install 'kdc[ray]'"
        ) from None
    if ray.is_initialized():
        yield ray
        return
    # "local": Ray by itself would join any cluster that happens to run on this machine.
    alone: dict[str, Any] = {"num_cpus": max(cores, usable_cores()), "include_dashboard": False}
    try:
        _check_answers(address)
        with _without_stderr():  # what fails is raised
            ray.init(
                address=address or "local", log_to_driver=False, logging_level=logging.ERROR,
                **({} if address else alone),
            )  # fmt: skip
    except (OSError, RuntimeError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        if not address:
            raise KdcError(
                "Ray does not start here", given=why, remedy="or --engine local, which needs none"
            ) from error
        raise InputError(
            f"no Ray cluster answers ({why})", given=f"--address {address}",
            remedy="`ray start --head` starts one; without --address, Ray runs on this machine alone",
        ) from None  # fmt: skip
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


def share_out(ray: Any, device: Device, count: int | None, threads: int | None) -> Actors:
    """Actors for the whole cluster: one a GPU, else one for each `threads` cores of a node.

    Args:
        ray: connected.
        device: "auto" is CUDA where the cluster has GPUs.
        count: so many, and where there is no room for them yet, they wait for nodes that join.
        threads: of each; None: 1 on a CPU, its GPU's share of the cores else.

    Raises:
        InputError: no node has room for one.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cpu":
        threads = threads or 1
        room = sum(int(node.get("CPU", 0)) // threads for node in nodes)
    else:
        shares = [int(node.get("CPU", 0)) // int(node["GPU"]) for node in nodes if node.get("GPU", 0) >= 1]
        threads = threads or max(1, min(shares, default=1))
        room = sum(min(int(node.get("GPU", 0)), int(node.get("CPU", 0)) // threads) for node in nodes)
    if count is None and not room:
        raise InputError(
            "no node has room for an actor", given=f"{threads} threads on {device}; {len(nodes)} nodes, {gpus} GPUs",
            remedy="fewer --threads, --device cpu, or --actors N to wait for nodes that join",
        )  # fmt: skip
    return Actors(count or room, threads, device)
