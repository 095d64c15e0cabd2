"""Classify texts with `kdc serve`: several requests at once, answers in the order of the texts.

    pip install httpx2
    python client_async.py 'a gripping film' dull        # or one text a line on standard input

Input, output, retries, KDC_URL and KDC_TOKEN are as in `client.py`. Memory does not grow with the input. For whole
tables use `kdc predict`, which is faster and needs no service.
"""

import asyncio
import email.utils
import itertools
import os
import random
import sys
import time
from collections import deque
from collections.abc import Iterator

import httpx2

AT_ONCE = 8  # more would wait or be refused
BUSY = {429, 503}  # nothing was computed; a 422 would fail again
TRIES = 5
TOTAL_S = 30.0  # of a whole request
TRY_S = 12.0  # longer than the service's own timeout (KDC_TIMEOUT_S, 10 s)
PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
ROWS = 32  # of a request

Answers = list[tuple[str, float]]


class NoAnswer(Exception):
    """The service's refusal, or why it was not reached."""


async def main() -> None:
    token = os.environ.get("KDC_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    batches = batches_of(iter(sys.argv[1:] or (line.rstrip("\r\n") for line in sys.stdin if line.strip())))
    limits = httpx2.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    url = os.environ.get("KDC_URL", "http://localhost:3000")
    working: deque[asyncio.Task[Answers]] = deque()
    async with httpx2.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=None) as client:
        try:
            while rows := await asyncio.to_thread(next, batches, None):  # a slow input must not hold back answers
                working.append(asyncio.create_task(classify(client, rows)))
                if len(working) == AT_ONCE:
                    show(await working.popleft())
            while working:
                show(await working.popleft())
        finally:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)


def batches_of(lines: Iterator[str]) -> Iterator[list[list[str]]]:
    """Rows of each request: [text] or [text, text]."""
    while rows := [line.split("\t") for line in itertools.islice(lines, ROWS)]:
        yield rows


def show(answers: Answers) -> None:
    for label, score in answers:
        print(f"{label}\t{score:.4f}")


async def classify(client: httpx2.AsyncClient, rows: list[list[str]]) -> Answers:
    """Best label and score of each row.

    Args:
        client: make one for all requests: it keeps connections.
        rows: [text] or [text, text].

    Raises:
        NoAnswer: the service refuses the rows, or stays busy or away.
    """
    body = {"inputs": rows, "parameters": {"top_k": 1}}
    ends = time.monotonic() + TOTAL_S
    for attempt in range(1, TRIES + 1):
        pause = random.uniform(0, min(PAUSE_S * 2**attempt, LONGEST_PAUSE_S))
        try:
            async with asyncio.timeout(min(TRY_S, ends - time.monotonic())):
                reply = await client.post("/predict", json=body)
        except (httpx2.TransportError, TimeoutError) as error:  # asking twice is harmless
            why = f"{type(error).__name__}: {error}"
        else:
            if reply.status_code == 200:
                return [(best["label"], best["score"]) for (best,) in reply.json()]
            why = f"{reply.status_code} {reply.text}"
            if reply.status_code not in BUSY:
                raise NoAnswer(why)
            pause += retry_after(reply)
        if attempt == TRIES or time.monotonic() + pause > ends:
            break
        await asyncio.sleep(pause)
    raise NoAnswer(f"gave up after {attempt} tries: {why}")


def retry_after(reply: httpx2.Response) -> float:
    """Seconds. A service sends a number, a proxy maybe a date."""
    told = reply.headers.get("Retry-After", "")
    if told.isdecimal():
        return float(told)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(told).timestamp() - time.time())
    except ValueError:
        return 0.0


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except NoAnswer as error:
        sys.exit(f"error: {error}")
