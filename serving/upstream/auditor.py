"""Compares a share of the local answers with the upstream's, in the background."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from kdc.artifact.manifest import Manifest
from kdc.common.errors import KdcError
from kdc.serving.upstream.client import Upstream
from kdc.serving.upstream.record import AuditRecord, Standing
from kdc.serving.upstream.reply import Reply, UpstreamFailed

log = logging.getLogger("kdc.serve")

Outcome = Literal["agree", "differ", "deferred", "dropped", "failed"]
_MOST_WAITING, _MOST_BYTES = 64, 8 << 20  # waiting audits, bytes of their bodies
_AT_A_TIME = 2  # requests
_LOOK_S = 1.0  # until another worker's stop is seen
_BOUND = re.compile(r"(disagreement|error)<=([0-9.e-]+)")


class Listener(Protocol):
    """The first argument is a model's name."""

    def audited(self, model: str, outcome: Outcome) -> None: ...

    def stands(self, model: str, standing: Standing) -> None: ...


def budget_of(manifest: Manifest) -> float | None:
    """The deferral's bound on disagreement, else on errors: the artifact's labels may be the upstream's."""
    abstain = manifest.task.abstain
    bounds = dict(_BOUND.findall("" if abstain is None else abstain.aim))
    bound = bounds.get("disagreement", bounds.get("error"))
    return None if bound is None else float(bound)


@dataclass(frozen=True)
class Audit:
    model: str
    manifest: Manifest
    path: str
    body: bytes  # with this question alone; b"" if deferred
    key: str | None  # the caller's `Authorization`
    differs: Callable[[Any], bool]  # of the decoded reply; may raise `UpstreamFailed`


class Auditor:
    """Create it in the event loop, and `start` it.

    Args:
        share: of the known questions, drawn for audits.
        budget: largest share of the known questions answered here and unlike upstream; None: as `budget_of`.
        folder: of the records, shared by workers.
        read: decodes a reply, or raises `UpstreamFailed`.
    """

    def __init__(
        self,
        upstream: Upstream,
        share: float,
        budget: float | None,
        folder: Path,
        listener: Listener,
        read: Callable[[Reply], Any],
    ) -> None:
        self._upstream, self._share, self._budget, self._folder = upstream, share, budget, folder
        self._listener, self._read = listener, read
        self._records: dict[str, AuditRecord] = {}  # by the manifest's SHA-256
        self._standings: dict[str, Standing] = {}
        self._names: dict[str, str] = {}  # of models
        self._queue: asyncio.Queue[Audit] = asyncio.Queue(_MOST_WAITING)
        self._bytes = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._draw = random.Random()

    def start(self) -> None:
        for work in (*[self._work] * _AT_A_TIME, self._look):
            self._tasks.append(asyncio.create_task(work()))

    def check(self, model: str, manifest: Manifest) -> None:
        self.has_stopped(model, manifest)
        self._records[manifest.sha256].check()

    def has_stopped(self, model: str, manifest: Manifest) -> bool:
        """Whether the artifact differs from the upstream too often."""
        sha256 = manifest.sha256
        if sha256 not in self._records:
            budget = budget_of(manifest) if self._budget is None else self._budget
            record = AuditRecord(self._folder, sha256, budget)
            self._records[sha256] = record
            self._note(model, sha256, record.read())
        return self._standings[sha256].stopped is not None

    def draw(self) -> bool:
        return self._draw.random() < self._share

    def submit(self, audit: Audit) -> None:
        """Queue or drop an audit: dropping deferred ones too keeps the counts a fair sample."""
        if self._queue.full() or self._bytes + len(audit.body) > _MOST_BYTES:
            self._listener.audited(audit.model, "dropped")
            return
        self._bytes += len(audit.body)
        self._queue.put_nowait(audit)

    async def _work(self) -> None:
        while True:
            audit = await self._queue.get()
            try:
                outcome = await self._outcome(audit)
                if outcome != "failed":
                    record = self._records[audit.manifest.sha256]
                    standing = await asyncio.to_thread(record.add, 1, int(outcome == "differ"))
                    self._note(audit.model, audit.manifest.sha256, standing)
            except KdcError as error:
                outcome = "failed"
                log.error("an audit is not recorded: %s", error.what)
            except Exception as error:  # noqa: BLE001 - the next audit must still be made; the text may be a client's
                outcome = "failed"
                log.error("an audit failed: %s", type(error).__name__)
            finally:
                self._bytes -= len(audit.body)
            self._listener.audited(audit.model, outcome)

    async def _outcome(self, audit: Audit) -> Outcome:
        if not audit.body:
            return "deferred"
        try:
            differs = await self._upstream.ask(
                audit.path, audit.body, audit.key, lambda reply: audit.differs(self._read(reply))
            )
        except UpstreamFailed as failure:
            await asyncio.sleep(failure.retry_after or 0)  # callers come first
            return "failed"
        return "differ" if differs else "agree"

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            for sha256, record in list(self._records.items()):
                with contextlib.suppress(KdcError):  # `add` reports the error
                    self._note(self._names[sha256], sha256, await asyncio.to_thread(record.read))

    def _note(self, model: str, sha256: str, standing: Standing) -> None:
        before = self._standings.get(sha256)
        self._standings[sha256], self._names[sha256] = standing, model
        self._listener.stands(model, standing)
        if standing.stopped is not None and (before is None or before.stopped is None):
            log.error(
                "%s: answers nothing any more, all goes upstream: of %d audited questions %d were answered unlike "
                "upstream, at least %.4f of all with 95 %% confidence, and the budget is %s; `kdc serve --resume` or a "
                "new artifact ends this",
                model,
                standing.audits,
                standing.differing,
                standing.low,
                standing.budget,
            )

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
