"""Sends load to services in front of a failing stub, and checks each answer against the stub's rule."""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.serving.client import Client, Reply
from benchmarks.serving.fronted import StubProcess, fronting, stub_process
from benchmarks.serving.mark import Mark
from benchmarks.serving.process import Running, running
from benchmarks.serving.servers import ROOT
from benchmarks.serving.stub_answers import DECISIONS, SYSTEM_ONE
from benchmarks.serving.stub_connection import FAULTS

sys.path.insert(0, str(ROOT / "tests"))

from upstreams import KNOWN, NAMES, answers, asked, is_error_of, is_sure, texts, write_artifacts, wrong

_CONNECTIONS, _TIMEOUT_S, _SLOW_S = 32, 0.5, 1.0
_FAULT = 0.015  # probability of each
_ALIVE_S, _DEAD_S = 4.0, 0.7  # stub up, stub down
_STATUSES = (422, 429, 502, 503, 504)
_LONGEST_OPEN_S = 31.0  # of the breaker
_PATHS = (SYSTEM_ONE, DECISIONS)
_LEAVING = 0.02  # share of leaving clients
_PAUSE_S = 0.05  # after 503, or most requests meet an open breaker
GONE = (OSError, EOFError, ValueError)  # no answer


@dataclass
class Seen:
    outcomes: Counter[str] = field(default_factory=Counter)  # by service, status and sources
    problems: list[str] = field(default_factory=list)  # wrong answers, with what would be right
    lost: int = 0  # requests without an answer
    refused: int = 0  # requests that need no upstream
    seconds: list[float] = field(default_factory=list)  # of requests that need no upstream
    left: int = 0
    memory_mb: list[float] = field(default_factory=list)
    connections: int = 0  # most at once
    kills: int = 0
    recovered: bool = False

    @property
    def answered(self) -> int:
        return sum(self.outcomes.values())


@dataclass(frozen=True)
class Front:
    up: Running
    answers_alone: bool

    @property
    def name(self) -> str:
        return "answer" if self.answers_alone else "error"


def soak(seconds: float, scratch: Path) -> Seen:
    """Asks two services while their upstream dies. One has `--when-upstream-fails answer`."""
    artifacts = write_artifacts(scratch)
    settings = {"KDC_UPSTREAM_TIMEOUT_S": str(_TIMEOUT_S), "KDC_AUDIT": "0.1"}
    # Not `outside`, `absurd`: services pass on a possible answer, whatever its probabilities.
    names = [name for name in FAULTS if name not in ("outside", "absurd")]
    faults = [part for name in names for part in ("--fault", f"{name}={_FAULT}")]
    with stub_process("--delay", "0.005", "--slow", str(_SLOW_S)) as stub:
        stub.kill()
        stub.start(*faults)
        strict = fronting(artifacts, stub.port, scratch / "strict", **settings)
        lenient = fronting(artifacts, stub.port, scratch / "lenient", "--when-upstream-fails", "answer", **settings)
        with running(strict, scratch / "strict.log") as one, running(lenient, scratch / "lenient.log") as other:
            fronts = [Front(one, answers_alone=False), Front(other, answers_alone=True)]
            return asyncio.run(_soak(seconds, fronts, stub, faults))


async def _soak(seconds: float, fronts: list[Front], stub: StubProcess, faults: list[str]) -> Seen:
    seen, until = Seen(), time.monotonic() + seconds
    clients = [{path: Client(front.up.port, path) for path in _PATHS} for front in fronts]
    asking = [
        _ask(fronts[number % 2], clients[number % 2], seen, until, random.Random(number))
        for number in range(_CONNECTIONS)
    ]
    await asyncio.gather(*asking, _watch(fronts, stub, seen, until), _kill(stub, faults, seen, until))
    stub.kill()
    stub.start()
    seen.recovered = all([await _recovers(front) for front in fronts])
    for each in clients:
        for client in each.values():
            client.close()
    return seen


async def _ask(front: Front, clients: dict[str, Client], seen: Seen, until: float, dice: random.Random) -> None:
    by_sure, number = list(texts().values()), 0
    while time.monotonic() < until:
        number += 1
        path = dice.choice(_PATHS)
        text = dice.choice(dice.choice(by_sure))
        names = tuple(dice.sample(NAMES, dice.randint(1, len(NAMES)))) if dice.random() < 0.8 else KNOWN
        body = json.dumps(asked(path, text, names, f"{id(dice)} {number}")).encode()
        request = asyncio.ensure_future(clients[path].post(body))
        if dice.random() < _LEAVING:
            await asyncio.wait([request], timeout=dice.random() * 0.02)
            if not request.done():
                request.cancel()
                await asyncio.gather(request, return_exceptions=True)
                seen.left += 1
                continue
        try:
            reply = await asyncio.wait_for(request, 20)
        except (*GONE, TimeoutError) as error:
            seen.lost += 1
            seen.problems.append(f"no answer: {type(error).__name__}")
            continue
        _check(front, path, text, names, reply, seen)
        if reply.status == 503:
            await asyncio.sleep(_PAUSE_S)


def _check(front: Front, path: str, text: str, names: tuple[str, ...], reply: Reply, seen: Seen) -> None:
    is_local = all(is_sure(name, text) for name in names)
    seen.refused += is_local and reply.status != 200
    if is_local:
        seen.seconds.append(reply.seconds)
    source = reply.headers.get("x-kdc-source", "none")
    seen.outcomes[f"{front.name} {reply.status} {source}"] += 1
    problems = _problems(front, path, text, names, reply, source)
    if reply.status != 200 and reply.status not in _STATUSES:
        problems.append(f"status {reply.status}")
    seen.problems += [f"{front.name} {path} {text!r} {problem}" for problem in problems]


def _problems(front: Front, path: str, text: str, names: tuple[str, ...], reply: Reply, source: str) -> list[str]:
    if reply.status != 200:
        if reply.status == 422:  # the stub's own
            return [] if b"stub: 422" in reply.body else ["422 of another request"]
        found = [] if is_error_of(path, reply.body) else [f"{reply.status} in another form"]
        if reply.status in (429, 503) and "retry-after" not in reply.headers:
            found.append(f"{reply.status} without Retry-After")
        return found
    given = answers(path, json.loads(reply.body))
    if list(given) != list(names):
        return [f"asked {names}, answered {list(given)}"]
    found = [f"{name}: {problem}" for name, each in given.items() if (problem := wrong(path, name, text, each))]
    if not front.answers_alone and any("x_below_threshold" in each for each in given.values()):
        found.append("an unsure answer, which nobody wanted")
    sources = {each["x_source"] for each in given.values()}
    if source != ("mixed" if len(sources) > 1 else sources.pop()):
        found.append(f"the header says {source}")
    return found


async def _watch(fronts: list[Front], stub: StubProcess, seen: Seen, until: float) -> None:
    while time.monotonic() < until:
        seen.memory_mb.append(sum(front.up.resident_mb() for front in fronts))
        for front in fronts:
            links = await asyncio.to_thread(front.up.worker.net_connections, "tcp")
            to_stub = [link for link in links if link.raddr and link.raddr.port == stub.port]
            seen.connections = max(seen.connections, len([link for link in to_stub if link.status != psutil.CONN_NONE]))
        await asyncio.sleep(0.5)


async def _kill(stub: StubProcess, faults: list[str], seen: Seen, until: float) -> None:
    while time.monotonic() + _ALIVE_S + _DEAD_S < until:
        await asyncio.sleep(_ALIVE_S)
        stub.kill()
        seen.kills += 1
        await asyncio.sleep(_DEAD_S)
        await asyncio.to_thread(stub.start, *faults)
    await asyncio.sleep(max(0.0, until - time.monotonic()))


async def _recovers(front: Front) -> bool:
    client, text = Client(front.up.port, SYSTEM_ONE), texts()[False, False][0]
    body = json.dumps(asked(SYSTEM_ONE, text, NAMES)).encode()
    deadline = time.monotonic() + _LONGEST_OPEN_S
    while (await client.post(body)).status != 200 and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
    replies = [await client.post(body) for _ in range(50)]
    client.close()
    return all(reply.status == 200 for reply in replies)


def marks(seen: Seen) -> list[Mark]:
    return [
        Mark("requests without an answer", False, 0, seen.lost),
        Mark("answers that are wrong, or not in the API's form", False, 0, len(seen.problems) - seen.lost),
        Mark("questions that need no upstream, and were not answered", False, 0, seen.refused),
        Mark("recovered", True, 1, int(seen.recovered)),
        Mark("connections of a service to the upstream", False, 256, seen.connections),
    ]


def table(seen: Seen) -> str:
    lines = ["| service, status, source | requests |", "|---|---:|"]
    lines += [f"| {outcome} | {count} |" for outcome, count in sorted(seen.outcomes.items())]
    quarter = max(1, len(seen.memory_mb) // 4)
    lines += [
        f"| all | {seen.answered} |",
        f"| clients that left before | {seen.left} |",
        f"| times that the upstream was killed | {seen.kills} |",
        f"| MB of both services after a quarter | {seen.memory_mb[quarter]:.0f} |",
        f"| at last | {seen.memory_mb[-1]:.0f} |",
    ]
    return "\n".join(lines) + "\n"
