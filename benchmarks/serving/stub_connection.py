"""One connection to the stub, and what all connections share."""

import asyncio
import contextlib
import hashlib
import random
import socket
import struct
import zlib
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, cast

import httptools
import orjson

from benchmarks.serving import stub_answers, stub_chat
from benchmarks.serving.stub_answers import DECISIONS, MODEL, SYSTEM_ONE, Json, Table, WrongBody, identity, reply
from benchmarks.serving.stub_chat import CHAT, ChatBehaviour
from benchmarks.serving.stub_chat_request import WrongChat

FAULTS = (
    *("429", "500", "503", "422", "redirect", "reset", "cut", "json", "missing", "type", "slow", "large", "stale"),
    *("outside", "absurd", "chunked"),
)
RETRY_AFTER = 7  # seconds, which no client would choose
_REASONS = {200: "OK", 307: "Temporary Redirect", 401: "Unauthorized", 404: "Not Found", 422: "Unprocessable Content"}
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: reset
_EVENTS = 5  # of a stream


@dataclass
class Behaviour:
    """Seconds and probabilities may change while the stub runs."""

    delay_s: float = 0.0
    spread: float = 0.0  # share by which the delay varies with the request's id
    faults: dict[str, float] = field(default_factory=dict)  # probabilities; their sum is at most 1
    slow_s: float = 10.0
    large_bytes: int = 0
    retry_after_s: int | None = None  # None: `RETRY_AFTER`
    event_s: float = 0.0  # between events
    keys: frozenset[str] | None = None  # accepted `Authorization` headers; None: any, or none
    chat: ChatBehaviour = field(default_factory=ChatBehaviour)


@dataclass(frozen=True)
class Asked:
    """Header names are lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int  # its number

    @property
    def document(self) -> Any:
        return orjson.loads(self.body)


class Stub:
    def __init__(self, behaviour: Behaviour | None = None, table: Table | None = None, seed: int = 0) -> None:
        self.behaviour = behaviour or Behaviour()
        self.table: Table = table or {}
        self.url = ""
        self.dice = random.Random(seed)
        self.connections: set[Connection] = set()
        self.forget()

    def forget(self) -> None:
        self.ids: Counter[str] = Counter()  # by request's id, or chat's text
        self.keys: Counter[str] = Counter()  # by their `Authorization`
        self.targets: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()  # that were made
        self.charged: Counter[str] = Counter()  # requests, input_tokens, output_tokens
        self.again = 0  # whole answers to an answered body
        self.answered: set[bytes] = set()  # such bodies' hashes
        self.asked: deque[Asked] = deque(maxlen=1000)
        self.opened = 0  # connections

    def fault(self, has_served: bool) -> str:
        """Draws a fault, or ""."""
        drawn = self.dice.random()
        for name, probability in self.behaviour.faults.items():
            drawn -= probability
            if drawn < 0:
                if name == "stale" and not has_served:
                    return ""
                self.faults[name] += 1
                return name
        return ""

    def charge(self, usage: dict[str, int]) -> None:
        self.charged["requests"] += 1
        self.charged["input_tokens"] += usage.get("input_tokens", usage.get("prompt_tokens", 0))
        self.charged["output_tokens"] += usage.get("output_tokens", usage.get("completion_tokens", 0))

    def answers_whole(self, body: bytes) -> None:
        key = hashlib.blake2b(body, digest_size=16).digest()
        self.again += key in self.answered
        self.answered.add(key)

    def told(self) -> Json:
        counters = ("ids", "keys", "targets", "faults", "charged")
        return {name: dict(getattr(self, name)) for name in counters} | {"opened": self.opened, "again": self.again}


class Connection(asyncio.Protocol):
    """Requests come one after the other."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self._parser = httptools.HttpRequestParser(self)
        self._url, self._headers, self._body = b"", dict[str, str](), list[bytes]()
        self._served = 0
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has another class
        self._stub.opened += 1
        self._number = self._stub.opened
        self._stub.connections.add(self)
        link: socket.socket = transport.get_extra_info("socket")
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, _: Exception | None) -> None:
        self._stub.connections.discard(self)
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def on_message_begin(self) -> None:
        self._url, self._headers, self._body = b"", {}, []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, part: bytes) -> None:
        self._body.append(part)

    def on_message_complete(self) -> None:
        method, target = self._parser.get_method().decode(), self._url.decode("latin-1")
        asked = Asked(method, target, self._headers, b"".join(self._body), self._number)
        path = target.partition("?")[0]
        if path == "/stub":
            self._send(200, self._stub.told())
            return
        stub = self._stub
        stub.asked.append(asked)
        stub.targets[target] += 1
        stub.keys[self._headers.get("authorization", "")] += 1
        keys = stub.behaviour.keys
        if keys is not None and self._headers.get("authorization") not in keys:
            self._send(401, _error(path, "authentication_error", "stub: wrong key"))
        elif path in (SYSTEM_ONE, DECISIONS, CHAT) and method == "POST":
            self._decide(path, asked)
        else:
            self._other(path, asked)
        self._served += 1

    def _decide(self, path: str, asked: Asked) -> None:
        stub = self._stub
        try:
            document = orjson.loads(asked.body)
            if path == CHAT and isinstance(document, dict) and document.get("stream"):
                self._task = asyncio.get_running_loop().create_task(self._stream())
                return
            if path == CHAT:
                content, name = stub_chat.reply(document, stub.table, stub.behaviour.chat, stub.dice)
            else:
                content, name = reply(path, document, stub.table), identity(path, document)
        except WrongChat as error:
            self._send(400, _error(path, "invalid_request_error", *error.args))
            return
        except (orjson.JSONDecodeError, WrongBody):
            self._send(422, {"detail": [{"loc": ["body"], "msg": "stub: a wrong body", "type": "stub"}]})
            return
        behaviour = stub.behaviour
        stub.ids[name] += 1
        fault = stub.fault(self._served > 0)
        wait = behaviour.delay_s * (1 + behaviour.spread * (zlib.crc32(name.encode()) / 2**31 - 1))
        wait += behaviour.slow_s if fault == "slow" else 0
        if wait:
            asyncio.get_running_loop().call_later(wait, self._answer, path, fault, content, asked.body)
        else:
            self._answer(path, fault, content, asked.body)

    def _answer(self, path: str, fault: str, content: Json, body: bytes) -> None:
        if self._transport.is_closing():
            return
        if fault in ("429", "500", "503", "422"):
            after_s = RETRY_AFTER if self._stub.behaviour.retry_after_s is None else self._stub.behaviour.retry_after_s
            after = {"Retry-After": str(after_s)} if fault in ("429", "503") else {}
            self._send(int(fault), _error(path, "stub", f"stub: {fault}"), after)
        elif fault == "redirect":
            self._send(307, {}, {"Location": f"{self._stub.url}/elsewhere"})
        elif fault in ("reset", "stale"):
            self._reset()
        else:
            self._stub.charge(content["usage"])
            if fault == "":
                self._stub.answers_whole(body)
            self._begin(fault, content)

    def _begin(self, fault: str, content: Json) -> None:
        if fault == "cut":
            whole = _written(200, orjson.dumps(content), {})
            self._transport.write(whole[: -len(orjson.dumps(content)) // 2])
            asyncio.get_running_loop().call_later(0.01, self._reset)  # half must arrive
        elif fault == "json":
            self._transport.write(_written(200, orjson.dumps(content)[:-1], {}))
        elif fault == "chunked":
            self._chunked(orjson.dumps(content))
        else:
            self._send(200, _damaged(fault, content, self._stub.behaviour.large_bytes))

    def _other(self, path: str, asked: Asked) -> None:
        if path == "/v1/models":
            described = {"name": MODEL, "description": "a stub", "release_date": "2026-01-01"}
            listed = {"id": MODEL, "object": "model", "created": 0, "owned_by": "stub"}
            self._send(200, {"object": "list", "data": [listed], "models": [described]})
        else:
            self._send(200, {"method": asked.method, "target": asked.target, "body": asked.body.decode("latin-1")})

    async def _stream(self) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        self._transport.write(head)
        for event in [*(b'{"delta":"%d"}' % number for number in range(_EVENTS)), b"[DONE]"]:
            await asyncio.sleep(self._stub.behaviour.event_s)
            self._chunk(b"data: %s\n\n" % event)
        self._transport.write(b"0\r\n\r\n")

    def _chunked(self, content: bytes) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for start in range(0, len(content), 50):
            self._chunk(content[start : start + 50])
        self._transport.write(b"0\r\n\r\n")

    def _chunk(self, part: bytes) -> None:
        self._transport.write(b"%x\r\n%s\r\n" % (len(part), part))

    def _send(self, status: int, content: Json, headers: dict[str, str] | None = None) -> None:
        self._transport.write(_written(status, orjson.dumps(content), headers or {}))

    def _reset(self) -> None:
        link: socket.socket = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError, ValueError):  # the other end was faster
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def close(self) -> None:
        self._transport.abort()


def _written(status: int, content: bytes, headers: dict[str, str]) -> bytes:
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {status} {_REASONS.get(status, 'Stub')}\r\nContent-Type: application/json\r\n{more}"
    return f"{head}x-request-id: stub\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


def _error(path: str, kind: str, message: str, param: str | None = None) -> Json:
    if path == CHAT:
        return {"error": {"message": message, "type": kind, "param": param, "code": None}}
    return {"detail": {"error_type": kind, "message": message}}


def _damaged(fault: str, content: Json, large_bytes: int) -> Json:
    if fault == "large":
        return content | {"x_padding": "x" * large_bytes}
    (stub_chat if "choices" in content else stub_answers).damage(fault, content)
    return content
