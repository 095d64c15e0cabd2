"""The ledger beside OUT: each attempt with its cost and outcome, and each text's answer, in one SQLite file.

An attempt is written before it is sent, with the most that it can cost. What is written survives `kill -9`; a power cut
may take the last seconds. The ledger holds replies, but only hashes of prompts and texts.
"""

import hashlib
import json
import sqlite3
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdc.artifact.question import canonical
from kdc.common.errors import InputError, printable
from kdc.tools.label.source import Answer

Outcome = Literal["answered", "unusable", "refused", "failed"]  # until the attempt ends, "in flight"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL, endpoint TEXT NOT NULL, requested TEXT NOT NULL, resolved TEXT,
    began REAL NOT NULL, seconds REAL, outcome TEXT NOT NULL, status INTEGER,
    input_tokens INTEGER, output_tokens INTEGER, usd REAL NOT NULL, reply TEXT);
CREATE INDEX IF NOT EXISTS replies ON attempts (key) WHERE outcome = 'answered';
CREATE TABLE IF NOT EXISTS answers (
    spec BLOB NOT NULL, text BLOB NOT NULL, probabilities TEXT NOT NULL, how TEXT NOT NULL, PRIMARY KEY (spec, text));
"""
_VERSION = 1


def text_hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def ledger_of(output: str) -> Path:
    return Path(f"{output}.ledger")


@dataclass(frozen=True)
class Spent:
    """Requests and costs of all runs."""

    requests: int
    input_tokens: int
    output_tokens: int
    usd: float  # unended calls: their highest cost


class Ledger:
    """Open it in one process at a time. Raises InputError for another file.

    Args:
        spec: fingerprint of what decides a text's answer.
    """

    def __init__(self, path: Path, *, endpoint: str, model: str, spec: bytes) -> None:
        self._endpoint, self._model, self._spec = endpoint, model, spec
        path.touch(mode=0o600)
        try:
            self._database = sqlite3.connect(path, isolation_level=None)
            self._database.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            self._database.executescript(f"{_SCHEMA} PRAGMA user_version = {_VERSION};")
        except sqlite3.DatabaseError as error:
            raise InputError("this is no ledger of kdc label", given=f"{path}: {error}", remedy="move it") from None
        if version not in (0, _VERSION):
            raise InputError("the ledger is of another version of kdc", given=path, remedy="move it")
        (self.unknown, self.unknown_usd) = self._database.execute(
            "SELECT count(*), total(usd) FROM attempts WHERE outcome = 'in flight'"
        ).fetchone()
        self._database.execute("UPDATE attempts SET outcome = 'failed' WHERE outcome = 'in flight'")

    def key(self, path: str, body: dict[str, Any], number: int) -> bytes:
        return hashlib.sha256(canonical([self._endpoint, path, body, number]).encode()).digest()

    def reply(self, key: bytes) -> dict[str, Any] | None:
        """The usable reply to an equal call."""
        row = self._database.execute(
            "SELECT reply FROM attempts WHERE key = ? AND outcome = 'answered' ORDER BY id DESC LIMIT 1", [key]
        ).fetchone()
        return None if row is None else json.loads(row[0])

    def begin(self, key: bytes, usd: float) -> int:
        """Note a call of at most `usd`; gives its number."""
        statement = "INSERT INTO attempts (key, endpoint, requested, began, outcome, usd) VALUES (?, ?, ?, ?, ?, ?)"
        row = [key, self._endpoint, self._model, time.time(), "in flight", usd]
        number = self._database.execute(statement, row).lastrowid
        assert number is not None
        return number

    def end(
        self,
        number: int,
        outcome: Outcome,
        *,
        status: int | None = None,
        usd: float | None = None,
        tokens: tuple[int, int] | None = None,
        resolved: str | None = None,
        reply: str | None = None,
    ) -> None:
        """Note a call's end. Without `usd` it counts with its highest cost."""
        resolved = None if resolved is None else printable(resolved[:200].encode("utf-8", "replace").decode())
        self._database.execute(
            "UPDATE attempts SET outcome = ?, seconds = ? - began, status = ?, usd = coalesce(?, usd), "
            "input_tokens = ?, output_tokens = ?, resolved = ?, reply = ? WHERE id = ?",
            [outcome, time.time(), status, usd, *(tokens or (None, None)), resolved, reply, number],
        )

    def answer(self, text: str) -> Answer | None:
        row = self._database.execute(
            "SELECT probabilities, how FROM answers WHERE spec = ? AND text = ?", [self._spec, text_hash(text)]
        ).fetchone()
        return None if row is None else Answer(tuple(json.loads(row[0])), row[1])

    def keep(self, text: str, answer: Answer) -> None:
        row = [self._spec, text_hash(text), json.dumps(answer.probabilities), answer.how]
        self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", row)

    @property
    def answered(self) -> int:
        (count,) = self._database.execute("SELECT count(*) FROM answers WHERE spec = ?", [self._spec]).fetchone()
        return int(count)

    def spent(self) -> Spent:
        row = self._database.execute(
            "SELECT count(*), coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0), total(usd) FROM attempts"
        ).fetchone()
        return Spent(*row)

    def models(self) -> list[str]:
        """The models that replied, as they name themselves."""
        rows = self._database.execute("SELECT DISTINCT resolved FROM attempts WHERE resolved IS NOT NULL ORDER BY 1")
        return [name for (name,) in rows]

    def latency_ms(self) -> tuple[float, float] | None:
        """Median and 95th percentile of the usable replies."""
        seconds = [
            value
            for (value,) in self._database.execute(
                "SELECT seconds FROM attempts WHERE outcome = 'answered' ORDER BY seconds"
            )
        ]
        if not seconds:
            return None
        return 1000 * seconds[len(seconds) // 2], 1000 * seconds[int(0.95 * (len(seconds) - 1))]

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._database.close()
