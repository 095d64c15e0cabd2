"""Seconds of more load than the service can hold: the extra is refused at once, nothing is mixed up or lost."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import numpy as np
from bag_models import SINGLE, write_artifact
from live import resident_bytes, served

from kdc.serving.engine.engine import Engine

SECONDS = 1.0
ENOUGH = 50  # answers, and refusals: a busy machine takes longer for as many
CONNECTIONS = 64


@dataclass
class Seen:
    right: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)


def make_texts() -> list[list[str]]:
    """Requests of 24 texts of two words, 96 tokens: the queue below takes one at a time."""
    random = np.random.default_rng(0)
    return [[" ".join(f"w{n}" for n in random.integers(0, 20, 2)) for _ in range(24)] for _ in range(200)]


async def keep_asking(url: str, requests: list[list[str]], expected: list[np.ndarray], first: int, seen: Seen) -> None:
    place, deadline, number = urlsplit(url), time.monotonic() + SECONDS, first
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    last = deadline + 30
    while time.monotonic() < deadline or (min(seen.right, seen.refused) <= ENOUGH and time.monotonic() < last):
        number = (number + 7) % len(requests)
        body = json.dumps({"texts": requests[number]}).encode()
        writer.write(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        reply = json.loads(await reader.readexactly(length))
        if " 429 " in head.split("\r\n")[0]:
            seen.refused += 1
            if "retry-after: " not in head:
                seen.problems.append("429 without Retry-After")
            continue
        scores = [{entry["label"]: entry["score"] for entry in row} for row in reply]
        got = np.array([[row[label] for label in SINGLE.labels] for row in scores])
        if got.shape == expected[number].shape and np.allclose(got, expected[number], atol=1e-5):
            seen.right += 1
        else:
            seen.problems.append(f"a reply that is not its request's: {head.splitlines()[0]}")
    writer.close()


def test_under_overload_answers_are_right_or_refused_and_memory_stays(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "artifact")
    engine = Engine.load(artifact, device="cpu", threads=1)
    requests = make_texts()
    expected = [engine.predict(texts) for texts in requests]

    async def load(url: str, seen: Seen) -> None:
        asked = (keep_asking(url, requests, expected, 3 * n, seen) for n in range(CONNECTIONS))
        await asyncio.gather(*asked)

    limits = ("--max-queue-tokens", "96", "--drain-delay", "0")
    # A pass a row, so that requests meet others in the queue on a busy machine too.
    with served(tmp_path, str(artifact), *limits, KDC_MAX_BATCH_TOKENS="4") as process:
        asyncio.run(load(process.url, Seen()))  # the allocators take what they need
        before, seen = resident_bytes(process), Seen()
        asyncio.run(load(process.url, seen))
        after = resident_bytes(process)
        assert httpx2.post(f"{process.url}/predict", json={"inputs": "w1"}).status_code == 200
        printed = process.printed()
    assert seen.problems == []
    assert seen.right > ENOUGH
    assert seen.refused > ENOUGH
    assert after - before < 20e6
    assert "Traceback" not in printed
