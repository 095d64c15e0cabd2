"""Asks the upstream through a pool of connections with limits, time-outs and a circuit breaker."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TypeVar

import aiohttp
from yarl import URL

from kdc.common.version import __version__
from kdc.serving.upstream.address import PublicResolver, base_url, networks
from kdc.serving.upstream.breaker import Breaker
from kdc.serving.upstream.reply import Reply, UpstreamFailed, unusable

KEY = "KDC_UPSTREAM_KEY"
CONNECT_S = 2.0
_LONGEST_RETRY_S = 3600  # of a `Retry-After`
_ACCEPTED_S, _MOST_KEYS = 3600.0, 10_000
# Reply headers that the client gets.
_PASSED, _PASSED_BEGINNINGS = ("x-request-id", "request-id", "content-type"), ("x-ratelimit-", "openai-")
Observe = Callable[[str, float], None]  # outcome, seconds
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Options:
    url: str
    networks: str | None = None
    timeout_s: float = 5.0
    connections: int = 256
    most_bytes: int = 2 << 20  # of a reply read whole
    most_streamed_bytes: int = 16 << 20
    forwards_key: bool = False


class Keys:
    """Keys of callers that the upstream accepted within an hour, as salted hashes."""

    def __init__(self) -> None:
        self._salt = secrets.token_bytes(32)
        self._accepted: OrderedDict[bytes, float] = OrderedDict()

    def _hash(self, authorization: str) -> bytes:
        return hashlib.blake2b(authorization.encode(), key=self._salt, digest_size=16).digest()

    def is_accepted(self, authorization: str, now: float) -> bool:
        return now - self._accepted.get(self._hash(authorization), -_ACCEPTED_S) < _ACCEPTED_S

    def heard(self, authorization: str, status: int, now: float) -> None:
        key = self._hash(authorization)
        if status in (401, 403):
            self._accepted.pop(key, None)
        elif 200 <= status < 300:
            self._accepted[key] = now
            self._accepted.move_to_end(key)
            if len(self._accepted) > _MOST_KEYS:
                self._accepted.popitem(last=False)


@dataclass
class Upstream:
    """Create it in the event loop."""

    options: Options
    observe: Observe
    keys: Keys = field(default_factory=Keys)
    breaker: Breaker = field(default_factory=Breaker)

    def __post_init__(self) -> None:
        self._base = base_url(self.options.url)
        self._own_key = None if self.options.forwards_key else os.environ.get(KEY)
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_reuseconn.append(_note_reuse)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self.options.connections, resolver=PublicResolver(networks(self.options.networks))
            ),
            headers={"User-Agent": f"kdc/{__version__}", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trace_configs=[tracing],
        )

    @property
    def spends_own_key(self) -> bool:
        return self._own_key is not None

    async def ask(self, path: str, body: bytes, key: str | None, read: Callable[[Reply], T]) -> T:
        """POST JSON, and read the whole reply.

        Args:
            path: with its query, as it was sent to us.
            key: the caller's `Authorization`, sent only with `forwards_key`.
            read: makes the result of a reply, or raises `unusable`.

        Raises:
            UpstreamFailed: there is no reply below 500, or it is 408 or 429, or refuses our own key.
        """
        headers = {"content-type": "application/json"} | ({} if key is None else {"authorization": key})
        timeout = aiohttp.ClientTimeout(total=self.options.timeout_s, sock_connect=CONNECT_S)
        async with self.open("POST", path, body, headers, timeout) as (reply, parts):
            if self.options.forwards_key and key is not None:  # other routes may take any key
                self.keys.heard(key, reply.status, time.monotonic())
            return read(Reply(reply.status, reply.headers, b"".join([part async for part in parts])))

    @contextlib.asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> AsyncIterator[tuple[Reply, AsyncIterator[bytes]]]:
        """Give a reply's beginning, and its body in parts. Raises as `ask`, also between two parts.

        Args:
            headers: in lower case. The upstream gets the content type, `accept` and perhaps the key.
            timeout: by default `timeout_s` between two parts of the reply.
        """
        most = self.options.most_streamed_bytes if timeout is None else self.options.most_bytes
        began = time.monotonic()
        if wait := self.breaker.wait_s(began):
            self.observe("open", 0.0)
            raise UpstreamFailed(503, "the upstream failed repeatedly", "open", max(1, round(wait)))
        failed, outcome = None, "left"
        try:
            async with await self._send(method, path, body, headers, timeout) as response:
                reply = self._begun(response)
                yield reply, _bounded(response, most)
            failed, outcome = False, "ok" if reply.is_answer else "client_error"
        except UpstreamFailed as error:
            failed, outcome = error.outcome != "rate_limited" and error.outcome != "key", error.outcome
            raise
        except TimeoutError:
            failed, outcome = True, "timeout"
            late = f"the upstream did not answer within {self.options.timeout_s:g} s"
            raise UpstreamFailed(504, late, outcome) from None
        except (aiohttp.ClientConnectorError, aiohttp.ClientConnectorDNSError):
            failed, outcome = True, "connect"
            raise UpstreamFailed(502, "the upstream cannot be reached", outcome) from None
        except (aiohttp.ClientError, OSError):  # its text may quote the reply
            failed, outcome = True, "broken"
            raise UpstreamFailed(502, "the upstream broke the connection", outcome) from None
        finally:
            now = time.monotonic()
            self.breaker.ended(failed=failed, now=now)
            self.observe(outcome, now - began)

    async def _send(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], timeout: aiohttp.ClientTimeout | None
    ) -> aiohttp.ClientResponse:
        """Send, and again if a kept connection was closed meanwhile."""
        sent = {name: headers[name] for name in ("content-type", "accept") if name in headers}
        if (key := self._key(headers)) is not None:
            sent["authorization"] = key
        url = URL(self._base + path, encoded=True)
        timeout = timeout or aiohttp.ClientTimeout(sock_connect=CONNECT_S, sock_read=self.options.timeout_s)
        for is_last in (False, True):
            note = SimpleNamespace(reused=False)
            try:
                return await self._session.request(
                    method,
                    url,
                    data=body or None,
                    headers=sent,
                    timeout=timeout,
                    allow_redirects=False,
                    trace_request_ctx=note,
                )
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if is_last or not note.reused or isinstance(error, aiohttp.ClientConnectorError):
                    raise
        raise AssertionError

    def _key(self, headers: Mapping[str, str]) -> str | None:
        if self.options.forwards_key:
            return headers.get("authorization")
        return None if self._own_key is None else f"Bearer {self._own_key}"

    def _begun(self, response: aiohttp.ClientResponse) -> Reply:
        status = response.status
        if status == 429:
            raise UpstreamFailed(429, "the upstream takes no more requests now", "rate_limited", _retry_after(response))
        if status in (401, 403) and self._own_key is not None:
            raise UpstreamFailed(502, f"the upstream refuses the service's key; see {KEY}", "key")
        if status >= 500 or status == 408 or 300 <= status < 400:
            after = _retry_after(response) if status == 503 else None
            shown = 503 if status == 503 else 502
            raise UpstreamFailed(shown, f"the upstream answered {status}", "server_error", after)
        passed = {
            name.lower(): value
            for name, value in response.headers.items()
            if (name.lower() in _PASSED or name.lower().startswith(_PASSED_BEGINNINGS)) and value.isascii()
        }
        return Reply(status, passed)

    async def close(self) -> None:
        await self._session.close()


async def _note_reuse(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
    context.trace_request_ctx.reused = True


def _retry_after(response: aiohttp.ClientResponse) -> int:
    """Seconds to wait; 1 if the header is missing or a date."""
    given = response.headers.get("Retry-After", "")
    return min(max(1, int(given)), _LONGEST_RETRY_S) if given.isascii() and given.isdigit() and len(given) < 9 else 1


async def _bounded(response: aiohttp.ClientResponse, most: int) -> AsyncIterator[bytes]:
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > most:
            raise unusable(f"is too large, more than {most} bytes")
        yield part
