"""Classify texts with `kdc serve`: one kept connection, and another try where the service is busy.

    pip install httpx
    python client.py 'a gripping film' dull        # or one text a line on standard input

Prints label and score of each; blank lines are left out. A tab parts the two texts of a pair. KDC_URL names the service
(default http://localhost:3000), KDC_TOKEN holds its bearer token, if it asks for one.

429, 503 and connections that fail are tried again, after `Retry-After` and a random pause that doubles, until the tries
or the seconds are used up. Every other answer is final. What is not answered ends the program with exit code 1.
"""

import email.utils
import itertools
import os
import random
import sys
import time

import httpx

BUSY = {429, 503}  # nothing was computed, and it will have room again; the same body would fail again with a 422
TRIES = 5
TOTAL_S = 30.0  # of a request with all its tries and pauses
# Of one try: longer than the service takes to say 504 (KDC_TIMEOUT_S, 10). httpx bounds each wait for bytes, not their
# sum: near enough for a small reply.
TRY_S = 12.0
PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
ROWS = 32  # of a request


class NoAnswer(Exception):
    """What the service said, or why it could not be reached."""


def main() -> None:
    """Texts in, a line of label and score for each out."""
    token = os.environ.get("KDC_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    lines = iter(sys.argv[1:] or (line.rstrip("\r\n") for line in sys.stdin if line.strip()))
    with httpx.Client(base_url=os.environ.get("KDC_URL", "http://localhost:3000"), headers=headers) as client:
        while rows := [line.split("\t") for line in itertools.islice(lines, ROWS)]:
            for label, score in classify(client, rows):
                print(f"{label}\t{score:.4f}")


def classify(client: httpx.Client, rows: list[list[str]]) -> list[tuple[str, float]]:
    """The best label of each row, and its score.

    Args:
        client: its connections are kept between requests: make one, not one a request.
        rows: [text] or [text, text].

    Raises:
        NoAnswer: the service refuses the rows, or it is busy or away for too long.
    """
    body = {"inputs": rows, "parameters": {"top_k": 1}}
    ends = time.monotonic() + TOTAL_S
    for attempt in range(1, TRIES + 1):
        pause = random.uniform(0, min(PAUSE_S * 2**attempt, LONGEST_PAUSE_S))
        try:
            reply = client.post("/predict", json=body, timeout=max(0.001, min(TRY_S, ends - time.monotonic())))
        except httpx.TransportError as error:  # asking twice does no harm
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


def retry_after(reply: httpx.Response) -> float:
    """Seconds. The service tells a number; a proxy before it may tell a date."""
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
