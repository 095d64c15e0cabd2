"""Sends load to `kdc serve`, and checks every reply against the engine."""

import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np

from benchmarks.serving.client import Client, Reply
from benchmarks.serving.process import Running
from benchmarks.serving.servers import Dialect
from kdc.serving.engine.engine import Engine, Text

_SIZES = (1, 8, 32)  # rows of a request
_TOLERANCE = 2e-3  # int8 may differ by 1e-3 between batches
_CONNECTIONS = 16


@dataclass(frozen=True)
class Question:
    body: bytes
    expected: np.ndarray


@dataclass
class Phase:
    """Results at one load.

    Attributes:
        offered, answered: rows/s.
        accepted, refused: seconds of answered requests, and of 429 replies.
        wrong: replies with other rows' answers.
        failed: neither 200 nor 429.
        resident: MB, each second.
    """

    offered: float = 0.0
    answered: float = 0.0
    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    without_retry_after: int = 0
    wrong: int = 0
    failed: int = 0
    resident: list[float] = field(default_factory=list)


def make_questions(engine: Engine, dialect: Dialect, rows: Sequence[Text], count: int) -> list[Question]:
    dice, probabilities = random.Random(0), engine.predict(rows)
    questions = []
    for number in range(count):
        places = [dice.randrange(len(rows)) for _ in range(_SIZES[number % len(_SIZES)])]
        body = json.dumps(dialect.body([rows[place] for place in places])).encode()
        questions.append(Question(body, probabilities[places]))
    return questions


class Asker:
    """`labels` are in the order of the probabilities' columns."""

    def __init__(self, up: Running, labels: Sequence[str], questions: Sequence[Question]) -> None:
        self._up = up
        self._labels = labels
        self._questions: Iterator[Question] = cycle(questions)
        self._mean_rows = sum(len(question.expected) for question in questions) / len(questions)

    async def closed(self, seconds: float) -> Phase:
        async def again() -> None:
            while time.perf_counter() < began + seconds:
                await self._ask(client, phase)

        phase, client, began = Phase(), self._client(), time.perf_counter()
        watcher = asyncio.create_task(self._watch(phase))
        await asyncio.gather(*(again() for _ in range(_CONNECTIONS)))
        _finish(phase, client, watcher, sent_in=time.perf_counter() - began, began=began)
        return phase

    async def open(self, seconds: float, rows_per_second: float) -> Phase:
        phase, client, began = Phase(), self._client(), time.perf_counter()
        watcher = asyncio.create_task(self._watch(phase))
        asked: set[asyncio.Task[None]] = set()
        count = 0
        while (passed := time.perf_counter() - began) < seconds:
            while count < passed * rows_per_second / self._mean_rows:
                task = asyncio.create_task(self._ask(client, phase))
                asked.add(task)
                task.add_done_callback(asked.discard)
                count += 1
            await asyncio.sleep(0.002)
        await asyncio.gather(*asked)
        _finish(phase, client, watcher, sent_in=seconds, began=began)
        return phase

    async def _ask(self, client: Client, phase: Phase) -> None:
        question = next(self._questions)
        phase.offered += len(question.expected)
        try:
            reply = await client.post(question.body)
        except (OSError, EOFError, ValueError):
            phase.failed += 1
            return
        if reply.status == 200:
            phase.answered += len(question.expected)
            phase.accepted.append(reply.seconds)
            phase.wrong += not self._is_right(reply, question.expected)
        elif reply.status == 429:
            phase.refused.append(reply.seconds)
            phase.without_retry_after += "retry-after" not in reply.headers
        else:
            phase.failed += 1

    def _is_right(self, reply: Reply, expected: np.ndarray) -> bool:
        rows = json.loads(reply.body)
        rows = [rows] if isinstance(rows[0], dict) else rows
        scores = [{entry["label"]: entry["score"] for entry in row} for row in rows]
        found = np.array([[row[label] for label in self._labels] for row in scores])
        return found.shape == expected.shape and bool(np.abs(found - expected).max() <= _TOLERANCE)

    async def _watch(self, phase: Phase) -> None:
        while True:
            phase.resident.append(self._up.resident_mb())
            await asyncio.sleep(1)

    def _client(self) -> Client:
        dialect = self._up.server.dialect
        assert dialect is not None
        return Client(self._up.port, dialect.path)


def _finish(phase: Phase, client: Client, watcher: asyncio.Task[None], *, sent_in: float, began: float) -> None:
    """Makes rates of sums. Answers come after sending ended."""
    watcher.cancel()
    client.close()
    phase.offered /= sent_in
    phase.answered /= time.perf_counter() - began
