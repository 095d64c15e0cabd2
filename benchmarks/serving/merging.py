"""Runs the code that merges answers, without sockets, on requests that overlap.

Each answer's number tells its request, question and source: a swapped, lost or doubled answer is seen.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Sequence
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import orjson

from benchmarks.serving.simulated import (
    Simulated,
    drawn_shape,
    found_number,
    keys_of,
    made_request,
    named_model,
    number_of,
    said,
    spread,
    stated,
    upstreams_reply,
)
from kdc.serving.http.api import forwarding
from kdc.serving.http.api.asked import Answered, Asked, Numbers
from kdc.serving.http.api.decisions import DecisionRequest
from kdc.serving.http.api.forwarding import Forwarding
from kdc.serving.http.replies import ApiError
from kdc.serving.http.settings import ServeSettings
from kdc.serving.upstream.reply import Reply, UpstreamFailed

_AT_ONCE, _TURN = 64, 2000
_UNSURE, _AUDITED = 0.25, 0.02  # of known questions
_FAULTS = ("fails", "refuses", "json", "list", "missing", "type", "range", "option", "more", "busy")
_FAULT = 0.02  # probability of each


class WrongMerge(Exception):
    """A reply lacks the right answer to a question."""


class Pause:
    """The driver decides which request resumes."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Simulation:
    def __init__(self, *, answers_alone: bool, shapes: int = 2000, seed: int = 0) -> None:
        self._dice = random.Random(seed)
        self._shapes = [drawn_shape(self._dice) for _ in range(shapes)]
        self._parsed = [shape.kind.model_validate(stated(shape, "text")) for shape in self._shapes]
        models = {name: named_model(name) for name in ("m0", "m1", "m2")}
        self._asked = [
            {
                key: Asked(body.by_key[key].question, models[shape.known[key]], (), None)
                if key in shape.known
                else None
                for key in shape.kinds
            }
            for shape, body in zip(self._shapes, self._parsed, strict=True)
        ]
        self.outcomes: Counter[str] = Counter()
        self.answers = 0
        self._answers_alone = answers_alone
        settings = ServeSettings(
            upstream="http://localhost", when_upstream_fails="answer" if answers_alone else "error"
        )
        metrics = SimpleNamespace(decided=lambda *_: None)
        self._forwarding = Forwarding(settings, cast(Any, self), cast(Any, self), cast(Any, metrics))
        self._live: dict[int, Simulated] = {}
        self.audits = 0

    # What `Forwarding` calls of the auditor and the upstream.

    def has_stopped(self, *_: object) -> bool:
        return False

    def draw(self) -> bool:
        return self._dice.random() < _AUDITED

    def submit(self, audit: Any) -> None:
        self.audits += 1
        if audit.body:
            document = orjson.loads(audit.body)
            simulated = self._live[number_of(document)]
            (key,) = keys_of(document)
            kind = simulated.shape.kinds[key]
            own, theirs = (said(kind, simulated.value(key, source), source) for source in ("local", "upstream"))
            if audit.differs(upstreams_reply(simulated, [key], "")) != (own != theirs):
                raise WrongMerge(f"an audit of {key} compares other answers")

    async def ask(self, path: str, body: bytes, key: str | None, read: Callable[[Reply], Any]) -> Any:
        document = orjson.loads(body)
        simulated = self._live[number_of(document)]
        simulated.sent = keys_of(document)
        await Pause()
        fault = simulated.fault
        if fault in ("fails", "busy"):
            raise UpstreamFailed(429 if fault == "busy" else 502, "simulated", "server_error")
        if fault == "refuses":
            return read(Reply(422, {}, b'{"detail": []}'))
        content = orjson.dumps(upstreams_reply(simulated, simulated.sent, fault))
        return read(Reply(200, {}, content[:-1] if fault == "json" else content))

    async def local(self, request: Any, known: Sequence[Asked], state: Any) -> Answered:
        """Replaces `forwarding.answers` by the artifacts' numbers."""
        simulated = self._live[int(state)]
        await Pause()
        keys = {id(asked): key for key, asked in simulated.asked.items() if asked is not None}
        numbers = []
        for asked in known:
            key = keys[id(asked)]
            value, kind = simulated.value(key, "local"), simulated.shape.kinds[key]
            probabilities = [value] if kind == "noul" else spread(value)
            numbers.append(Numbers(probabilities, 0.5, {"x_abstained": True} if key in simulated.unsure else {}))
        return Answered(numbers, "m", len(known))

    # The driver.

    def _begin(self, number: int) -> tuple[Simulated, Coroutine[Any, Any, Any]]:
        dice = self._dice
        place = dice.randrange(len(self._shapes))
        shape = self._shapes[place]
        document = stated(shape, str(number))
        drawn = dice.random() / _FAULT
        fault = _FAULTS[int(drawn)] if drawn < len(_FAULTS) else ""
        unsure = {key for key in shape.known if dice.random() < _UNSURE}
        simulated = Simulated(number, shape, fault, unsure, self._parsed[place], document, self._asked[place])
        self._live[number] = simulated
        request = cast(Any, made_request(shape))
        answering = self._forwarding.answer(
            request, orjson.dumps(document), document, simulated.body, cast(Any, simulated.asked), str(number)
        )
        return simulated, answering

    async def run(self, requests: int) -> None:
        """Raises `WrongMerge` if a reply is wrong."""
        going: list[tuple[Simulated, Coroutine[Any, Any, Any]]] = []
        started = ended = steps = 0
        try:
            with patch.object(forwarding, "answers", self.local):
                while ended < requests:
                    while len(going) < _AT_ONCE and started < requests:
                        going.append(self._begin(started))
                        started += 1
                    place = self._dice.randrange(len(going))
                    ended += self._step(going, place)
                    if (steps := steps + 1) % _TURN == 0:
                        await asyncio.sleep(0)  # the loop forgets cancelled timers
        finally:
            for _, answering in going:
                answering.close()

    def _step(self, going: list[tuple[Simulated, Coroutine[Any, Any, Any]]], place: int) -> bool:
        simulated, answering = going[place]
        try:
            answering.send(None)
        except (StopIteration, ApiError) as end:
            going[place] = going[-1]
            going.pop()
            self._check(simulated, end.value if isinstance(end, StopIteration) else end)
            del self._live[simulated.number]
            return True
        return False

    def _check(self, simulated: Simulated, end: Any) -> None:
        shape, fault = simulated.shape, simulated.fault
        sure = set(shape.known) - simulated.unsure
        rest = [key for key in shape.kinds if key not in sure]
        if simulated.sent != rest:
            raise WrongMerge(f"{rest} go upstream, and {simulated.sent} went")
        fails = bool(rest) and fault not in ("", "more", "refuses")
        alone = fails and self._answers_alone and set(rest) <= set(shape.known)
        if rest and fault == "refuses":
            self._same("status", end.status_code, 422)
            self.outcomes["422"] += 1
            return
        if fails and not alone:
            self._same("status", getattr(end, "status", None), 429 if fault == "busy" else 502)
            self.outcomes[str(end.status)] += 1
            return
        if isinstance(end, ApiError):
            raise WrongMerge(f"{end.status} in place of an answer")
        answers = orjson.loads(end.body)["answers"]
        given = dict(answers) if isinstance(answers, dict) else dict(enumerate(answers))
        self._same("questions", list(given), list(shape.kinds))
        for key, answer in given.items():
            source = "local" if key in sure or alone else "upstream"
            self.answers += 1
            self._same("source", answer["x_source"], source)
            self._same("mark", answer.get("x_below_threshold", False), alone and key not in sure)
            self._same("name", answer.get("name"), shape.names[key] if shape.kind is DecisionRequest else None)
            found, expected = found_number(shape.kinds[key], answer), simulated.value(key, source)
            says = said(shape.kinds[key], expected, source)
            if abs(found - expected) > 1e-9 or answer.get("choice", says) != says:
                raise WrongMerge(f"request {simulated.number}, question {key}: {found} is not {expected}")
        wanted = "local" if not rest or alone else "mixed" if sure else "upstream"
        self._same("header", end.headers["x-kdc-source"], wanted)
        self.outcomes[f"200 {wanted}{' below' if alone else ''}"] += 1

    def _same(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            raise WrongMerge(f"{what}: {found} is not {expected}")
