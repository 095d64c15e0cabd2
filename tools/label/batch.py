"""Files of a batch API instead of calls: OUT.batch.jsonl goes to the endpoint, and its results come back as a file.

The form is OpenAI's: a line holds `custom_id`, `method`, `url` and `body`; a line of the results `custom_id` and
`response`. An answer outside the list is asked again in the next round.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

from kdc.common.errors import InputError
from kdc.common.places import find
from kdc.serving.bulk.inputs import read_all
from kdc.tools.label.asking import tokens_of
from kdc.tools.label.ledger import Ledger
from kdc.tools.label.source import Call
from kdc.tools.label.spec import Spec

T = TypeVar("T")


class Pending(Exception):
    """A call's reply comes with the next results."""


def batch_of(output: str) -> Path:
    return Path(f"{output}.batch.jsonl")


class Batch:
    """The `Ask` of a batch: it reads replies from the ledger, and writes the calls that have none into a file."""

    def __init__(self, spec: Spec, ledger: Ledger, stream: IO[bytes]) -> None:
        self._ledger, self._route = ledger, "/" + spec.source.url.rstrip("/").rpartition("/")[2]
        self._stream, self._written = stream, set[bytes]()

    @property
    def calls(self) -> int:
        return len(self._written)

    async def __call__(self, call: Call, read: Callable[[dict[str, Any]], T]) -> T:
        """See `Ask`.

        Raises:
            Pending: there is no reply yet.
        """
        key = self._ledger.key(call.path, call.body, call.number)
        if (reply := self._ledger.reply(key)) is not None:
            return read(reply)
        if key not in self._written:
            self._written.add(key)
            line = {"custom_id": key.hex(), "method": "POST", "url": self._route + call.path, "body": call.body}
            self._stream.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        raise Pending


def read_results(path: Path, spec: Spec, ledger: Ledger) -> tuple[int, int]:
    """Put the results of a batch into the ledger; gives the numbers of replies and of failed calls.

    Raises:
        InputError: the file cannot be read, or holds no results.
    """
    replies = failed = 0
    for window, _ in read_all(find(str(path))):
        for row in window.dicts():
            key, given = _key(row.get("custom_id")), row.get("response")
            response = given if isinstance(given, dict) else {}
            body = response.get("body")
            if key is None or not isinstance(body, dict) or response.get("status_code") != 200:
                failed += 1
                continue
            replies += 1
            if ledger.reply(key) is not None:  # the same results again
                continue
            tokens, model = tokens_of(body), body.get("model")
            ledger.end(
                ledger.begin(key, 0.0),
                "answered",
                status=200,
                usd=0.0 if tokens is None else spec.prices.usd(*tokens),
                tokens=tokens,
                resolved=model if isinstance(model, str) else None,
                reply=json.dumps(body),
            )
    if not replies and not failed:
        raise InputError("the file holds no results of a batch", given=path, remedy="the endpoint's output file")
    return replies, failed


def _key(identity: Any) -> bytes | None:
    try:
        key = bytes.fromhex(identity)
    except (TypeError, ValueError):
        return None
    return key if len(key) == 32 else None
