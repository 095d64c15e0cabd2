"""Classify texts with `kdc serve`: one kept connection, and retries if the service is busy.

    pip install httpx2
    python client.py 'a gripping film' dull        # or one text a line on standard input

Prints label and score of each text; skips blank lines. A tab separates the texts of a pair. KDC_URL names the service
(default http://localhost:3000); KDC_TOKEN holds its bearer token, if it needs one.

Retries 429, 503 and failed connections after `Retry-After` and a random, doubling pause, until tries or seconds run
out. Unanswered rows give exit code 1.
"""

import email.utils
import itertools
import os
import random
import sys
import time

import httpx2

BUSY = {429, 503}  # nothing was computed; a 422 would fail again
TRIES = 5
TOTAL_S = 30.0  # of a whole request
# Longer than the service's own timeout (KDC_TIMEOUT_S, 10 s; then 504). httpx2 bounds each wait for bytes, not their
# sum, which is enough for small replies.
TRY_S = 12.0
PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
ROWS = 32  # of a request


class NoAnswer(Exception):
    """The service's refusal, or why it was not reached."""


def main() -> None:
    token = os.environ.get("KDC_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    lines = iter(sys.argv[1:] or (line.rstrip("\r\n") for line in sys.stdin if line.strip()))
    with httpx2.Client(base_url=os.environ.get("KDC_URL", "http://localhost:3000"), headers=headers) as client:
        while rows := [line.split("\t") for line in itertools.islice(lines, ROWS)]:
            for label, score in classify(client, rows):
                print(f"{label}\t{score:.4f}")


def classify(client: httpx2.Client, rows: list[list[str]]) -> list[tuple[str, float]]:
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
            reply = client.post("/predict", json=body, timeout=max(0.001, min(TRY_S, ends - time.monotonic())))
        except httpx2.TransportError as error:  # asking twice is harmless
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
        time.sleep(pause)
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
        main()
    except NoAnswer as error:
        sys.exit(f"error: {error}")
