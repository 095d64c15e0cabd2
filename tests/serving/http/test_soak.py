"""A few seconds of requests of all lengths and sizes: memory stays where it was after warm-up."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import httpx
import psutil
from bag_models import write_artifact
from live import Process, served

SECONDS = 4
CONNECTIONS = 8


def resident(process: Process) -> int:
    return sum(child.memory_info().rss for child in psutil.Process(process.popen.pid).children())


async def ask_for_all_lengths(url: str) -> int:
    """How many were answered."""
    dice, deadline, answered = random.Random(0), time.monotonic() + SECONDS, 0

    async def one_connection(client: httpx.AsyncClient) -> None:
        nonlocal answered
        while time.monotonic() < deadline:
            texts = ["w1 " * dice.randint(0, 200) for _ in range(dice.choice((1, 1, 8, 64)))]
            reply = await client.post(f"{url}/predict", json={"inputs": [[text] for text in texts]})
            assert reply.status_code == 200
            assert len(reply.json()) == len(texts)
            answered += 1

    async with httpx.AsyncClient(timeout=30) as client:
        await asyncio.gather(*(one_connection(client) for _ in range(CONNECTIONS)))
    return answered


def test_memory_is_flat_over_requests_of_all_lengths(tmp_path: Path) -> None:
    with served(tmp_path, str(write_artifact(tmp_path / "artifact")), "--drain-delay", "0") as process:
        asyncio.run(ask_for_all_lengths(process.url))  # the allocators take what they need
        before = resident(process)
        assert asyncio.run(ask_for_all_lengths(process.url)) > 100
        assert resident(process) - before < 15e6
