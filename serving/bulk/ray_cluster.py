"""How a bulk scoring job is shared out on a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdc.artifact.manifest import Device
from kdc.common.errors import InputError


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
            "no node has room for an actor",
            given=f"{threads} threads on {device}; {len(nodes)} nodes, {gpus} GPUs",
            remedy="fewer --threads, --device cpu, or --actors N to wait for nodes that join",
        )
    return Actors(count or room, threads, device)
