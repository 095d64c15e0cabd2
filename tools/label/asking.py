"""Sends calls to the endpoint: retries with backoff, a pace that adapts, and limits on requests and money."""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from kdc.common.errors import KdcError, printable
from kdc.common.version import __version__
from kdc.tools.label.ledger import Ledger
from kdc.tools.label.source import Call, Refused, Unusable
from kdc.tools.label.spec import Spec

T = TypeVar("T")
_TRIES, _FIRST_WAIT_S, _LONGEST_WAIT_S, _LONGEST_RETRY_S = 8, 0.5, 60.0, 600.0
_MOST_LOST = 3  # failed calls in a row, before the run ends
_MOST_BYTES = 4 << 20  # of a reply
_MOST_TOKENS = 1 << 40
_MOST_TOLD = 300  # characters of a refusal
_FATAL = {
    401: "the endpoint refuses the key",
    402: "the endpoint asks for payment",
    403: "the endpoint refuses the key",
    404: "the endpoint does not know the route or the model",
}


class LimitReached(KdcError):
    """`--max-requests` or `--max-usd` allows no further call."""


class Pace:
    """Bounds calls at once: one more after a round without trouble, half after trouble (AIMD, Chiu and Jain 1989)."""

    def __init__(self, most: int) -> None:
        self._most, self._allowed, self._running = most, float(min(4, most)), 0
        self._free = asyncio.Condition()
        self._halved = 0.0

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[float]:
        """Wait for a turn; yields the time when it began."""
        async with self._free:
            await self._free.wait_for(lambda: self._running < int(self._allowed))
            self._running += 1
        try:
            yield time.monotonic()
        finally:
            async with self._free:
                self._running -= 1
                self._free.notify_all()

    def went_well(self) -> None:
        self._allowed = min(self._most, self._allowed + 1 / self._allowed)

    def trouble(self, began: float) -> None:
        """Halve, but only once for all calls under way."""
        if began > self._halved:
            self._allowed, self._halved = max(1.0, self._allowed / 2), time.monotonic()


class _Again(Exception):
    def __init__(self, why: str, *, status: int | None = None, after_s: float = 0.0, is_paid: bool = True) -> None:
        self.why, self.status, self.after_s, self.is_paid = why, status, after_s, is_paid


class Asking:
    """The `Ask` of a run. Create it in the event loop, and close it.

    Args:
        max_requests, max_usd: of all runs with this ledger together.
    """

    def __init__(
        self, spec: Spec, ledger: Ledger, *, max_requests: int | None = None, max_usd: float | None = None
    ) -> None:
        self._spec, self._ledger, self._max_requests, self._max_usd = spec, ledger, max_requests, max_usd
        spent = ledger.spent()
        self.requests, self.usd = spent.requests, spent.usd  # with reserves of calls under way
        self._pace, self._lost, self._draw = Pace(spec.source.concurrency), 0, random.Random()
        key = spec.key()
        headers = {"User-Agent": f"kdc/{__version__}", "Content-Type": "application/json"}
        self._session = aiohttp.ClientSession(
            headers=headers | ({} if key is None else {"Authorization": f"Bearer {key}"}),
            timeout=aiohttp.ClientTimeout(total=spec.source.timeout_s),
            connector=aiohttp.TCPConnector(limit=spec.source.concurrency),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        url = urlsplit(spec.source.url)
        self._url = spec.source.url.rstrip("/")
        self._proxy = None if proxy_bypass(url.hostname or "") else getproxies().get(url.scheme)

    async def close(self) -> None:
        await self._session.close()

    async def __call__(self, call: Call, read: Callable[[dict[str, Any]], T]) -> T:
        """See `Ask`.

        Raises:
            LimitReached: the call may pass a limit.
            KdcError: the endpoint refuses all calls, or does not answer.
        """
        body = json.dumps(call.body, ensure_ascii=False, separators=(",", ":")).encode()
        key = self._ledger.key(call.path, call.body, call.number)
        if (reply := self._ledger.reply(key)) is not None:
            return read(reply)
        why = ""
        for number in range(_TRIES):
            try:
                result = await self._once(call.path, key, body, read)
            except _Again as again:
                why = again.why
                if number < _TRIES - 1:
                    # "Full jitter": calls that failed together do not come together again.
                    jitter = self._draw.uniform(0, min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**number))
                    await asyncio.sleep(again.after_s + jitter)
            else:
                self._lost = 0
                return result
        self._lost += 1
        if self._lost >= _MOST_LOST:
            remedy = "check url and the network; the same command resumes"
            raise KdcError("the endpoint does not answer", given=f"{self._spec.source.url}: {why}", remedy=remedy)
        raise Unusable(f"no reply in {_TRIES} tries: {why}")

    async def _once(self, path: str, key: bytes, body: bytes, read: Callable[[dict[str, Any]], T]) -> T:
        async with self._pace.turn() as began:
            # A token has a byte or more: this bounds the tokens.
            most_usd = self._spec.prices.usd(len(body), self._spec.source.most_output_tokens)
            self._reserve(most_usd)
            number = self._ledger.begin(key, most_usd)
            try:
                text = await self._sent(path, body)
                reply = _decoded(text)
            except _Again as again:
                usd = None if again.is_paid else 0.0
                self._ledger.end(number, "failed", status=again.status, usd=usd)
                self.usd -= 0.0 if again.is_paid else most_usd
                self._pace.trouble(began)
                raise
            except (Refused, KdcError):
                self._ledger.end(number, "refused", usd=0.0)
                self.usd -= most_usd
                raise
            return self._read(number, reply, text, most_usd, read)

    def _reserve(self, usd: float) -> None:
        if self._max_requests is not None and self.requests >= self._max_requests:
            raise LimitReached("the requests are used up", given=f"--max-requests {self._max_requests}")
        if self._max_usd is not None and self.usd + usd > self._max_usd:
            given = f"--max-usd {self._max_usd:g}; {self.usd:.4f} are spent or reserved, a call may cost {usd:.4f}"
            raise LimitReached("the money is used up", given=given)
        self.requests, self.usd = self.requests + 1, self.usd + usd

    def _read(
        self, number: int, reply: dict[str, Any], text: str, most_usd: float, read: Callable[[dict[str, Any]], T]
    ) -> T:
        self._pace.went_well()
        tokens = tokens_of(reply)
        usd = most_usd if tokens is None else self._spec.prices.usd(*tokens)
        self.usd += usd - most_usd
        resolved = reply.get("model")
        resolved = resolved if isinstance(resolved, str) else None
        try:
            result = read(reply)
        except Unusable:
            self._ledger.end(number, "unusable", status=200, usd=usd, tokens=tokens, resolved=resolved)
            raise
        self._ledger.end(number, "answered", status=200, usd=usd, tokens=tokens, resolved=resolved, reply=text)
        return result

    async def _sent(self, path: str, body: bytes) -> str:
        try:
            async with self._session.post(
                f"{self._url}{path}", data=body, proxy=self._proxy, allow_redirects=False
            ) as response:
                content = await _bounded(response)
                self._check(response, content)
                return content.decode("utf-8", "replace")
        except TimeoutError:
            raise _Again(f"no reply within {self._spec.source.timeout_s:g} s") from None
        except aiohttp.ClientConnectorError as error:
            raise _Again(f"cannot connect ({type(error).__name__})", is_paid=False) from None
        except (aiohttp.ClientError, OSError) as error:
            raise _Again(f"the connection broke ({type(error).__name__})") from None

    def _check(self, response: aiohttp.ClientResponse, content: bytes) -> None:
        status = response.status
        if 200 <= status < 300:
            return
        said = printable(content[:_MOST_TOLD].decode("utf-8", "replace"))
        if status == 429 or status == 503:
            after = _retry_after(response.headers.get("Retry-After", ""))
            raise _Again(f"status {status}", status=status, after_s=after, is_paid=False)
        if status in (408, 409, 425) or status >= 500:
            raise _Again(f"status {status}", status=status)
        if status in _FATAL or status < 400:
            remedy = "check url, model and key_env; the same command resumes"
            given = f"status {status}" if status in (401, 403) else f"status {status}: {said}"  # it may quote the key
            raise KdcError(_FATAL.get(status, "the endpoint redirects"), given=given, remedy=remedy)
        raise Refused(f"status {status}: {said}")


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > _MOST_BYTES:
            raise _Again(f"a reply of more than {_MOST_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


def _decoded(text: str) -> dict[str, Any]:
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError):
        raise _Again("the reply is no JSON", status=200) from None
    if not isinstance(reply, dict):
        raise _Again("the reply is no object", status=200)
    return reply


def tokens_of(reply: dict[str, Any]) -> tuple[int, int] | None:
    """Read and written tokens; None if the reply says none, or the impossible."""
    usage = reply.get("usage")
    if not isinstance(usage, dict):
        return None
    counts = [
        next((usage[name] for name in names if name in usage), None)
        for names in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
    ]
    read, written = (count if type(count) is int and 0 <= count < _MOST_TOKENS else None for count in counts)
    return None if read is None or written is None else (read, written)


def _retry_after(given: str) -> float:
    """Seconds; 1 if the header names none."""
    seconds = float(given) if given.isascii() and given.isdigit() and len(given) < 9 else 1.0
    return min(seconds, _LONGEST_RETRY_S)
