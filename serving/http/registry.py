"""Loads, warms and reloads a worker's models without a pause, even if a volume hangs."""

import asyncio
import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.text import refuse_failed, sentence
from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import MANIFEST_NAME
from kdc.artifact.signature import signed_sha256_of
from kdc.common import machine
from kdc.common.cores import usable_cores
from kdc.common.errors import InputError, KdcError
from kdc.common.memory import release_free_memory
from kdc.serving.engine.engine import Engine
from kdc.serving.http.artifacts import expected_sha256, local, paths_by_name
from kdc.serving.http.model import SILENT, Listeners, Model, batch_tokens, check_queue
from kdc.serving.http.settings import ServeSettings, check_upstream, trace_exporters
from kdc.serving.upstream.record import AuditRecord

log = logging.getLogger("kdc.serve")

MAX_LANES = 4  # more would wait for the interpreter's lock
PATIENCE_S = 60.0  # after it a slow read is logged, and others load beside it
T = TypeVar("T")


def verify(settings: ServeSettings, *, hashes: bool = True) -> ServeSettings:
    """Check settings, artifacts and contracts; returns the settings with local paths.

    `hashes`: compare every file's SHA-256. Workers compare only the files they load.
    """
    _ = settings.api_key
    check_upstream(settings)
    trace_exporters()
    allow, sha256, keys = settings.allow_failed, settings.expect_sha256, settings.verify_key
    artifact = local(settings.artifact, allow_failed=allow, expect_sha256=sha256, verify_key=keys)
    paths = paths_by_name(artifact)
    expected = expected_sha256(sha256, paths)
    if strangers := set(settings.answering) - paths.keys():
        remedy = f"names of artifacts that are served: {', '.join(paths)}"
        raise InputError("--answers names no artifact", given=", ".join(sorted(strangers)), remedy=remedy)
    for name, path in paths.items():
        signed = signed_sha256_of(path, keys, expected.get(name))
        manifest = load_manifest(path, verify=hashes, expect_sha256=signed)
        refuse_failed(manifest.contract, allow=allow)
        if settings.resume:
            AuditRecord(settings.state_folder, manifest.sha256, None).resume()
    return settings.model_copy(update={"artifact": artifact})


class Registry:
    def __init__(self, settings: ServeSettings, listeners: Listeners = SILENT) -> None:
        self._settings, self._listeners = settings, listeners
        self._paths = paths_by_name(settings.artifact)
        self._expected = expected_sha256(settings.expect_sha256, self._paths)
        self._seen: dict[str, object] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._reads: set[asyncio.Future[Any]] = set()
        self._loading = asyncio.Lock()
        self.models: dict[str, Model] = {}  # a reload replaces one

    @property
    def first(self) -> Model:
        return next(iter(self.models.values()))

    def load(self) -> None:
        for name, path in self._paths.items():
            self._seen[name] = _identity(path)
            self.models[name] = Model(name, self._open(name), self._settings, self._listeners)

    async def watch(self) -> None:
        await asyncio.gather(*(self._watch(name, path) for name, path in self._paths.items()))

    async def _watch(self, name: str, path: Path) -> None:
        refused = False
        while True:
            await asyncio.sleep(self._settings.reload_s)
            try:
                refused = await self._look(name, path, refused=refused)
            except Exception:  # the next change must still be seen
                log.exception("%s: the artifact cannot be checked, the old one stays", name)
                refused = True
            self._listeners.reloaded(name, refused)

    async def _look(self, name: str, path: Path, *, refused: bool) -> bool:
        signature = await self._read(name, functools.partial(_identity, path))
        if signature == self._seen[name]:
            return refused
        self._seen[name] = signature
        if signature is None:
            log.error("%s: there is no artifact any more, the old one stays: %s", name, path)
            return True
        async with contextlib.AsyncExitStack() as stack:
            # Loads take memory and cores: one at a time, unless it hangs.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    await stack.enter_async_context(self._loading)
            engine = await self._read(name, functools.partial(self._open_or_tell, name))
        if engine is None:
            return True
        self._replace(name, engine)
        log.info("%s: now serves %s", name, path.resolve())
        return False

    async def _read(self, name: str, function: Callable[[], T]) -> T:
        """Call `function` in a daemon thread: the process can end if a volume hangs."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                deliver = functools.partial(outcome.set_result, function())
            except Exception as error:  # noqa: BLE001 - raised by the one that waits
                deliver = functools.partial(outcome.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(deliver)

        threading.Thread(target=run, name="kdc-reader", daemon=True).start()
        self._reads.add(outcome)
        outcome.add_done_callback(self._reads.discard)
        _, late = await asyncio.wait([outcome], timeout=PATIENCE_S)
        if late:
            log.error("%s: the artifact could not be read within %g s, the old one stays until it is", name, PATIENCE_S)
            self._listeners.reloaded(name, True)
            await asyncio.wait(late)
        return outcome.result()

    def _replace(self, name: str, engine: Engine) -> None:
        new = Model(name, engine, self._settings, self._listeners)
        old, self.models[name] = self.models[name], new
        task = asyncio.create_task(old.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        await asyncio.gather(*(model.close() for model in self.models.values()), *self._closing)
        if self._reads:
            await asyncio.wait(self._reads)

    def _open_or_tell(self, name: str) -> Engine | None:
        try:
            return self._open(name)
        except KdcError as error:
            log.error("%s: the new artifact is refused, the old one stays: %s (%s)", name, error.what, error.given)
        except Exception:
            log.exception("%s: the new artifact is refused, the old one stays", name)
        return None

    def _open(self, name: str) -> Engine:
        settings, folder = self._settings, self._paths[name].resolve()  # resolved once: a link may change
        threads = settings.threads or max(1, usable_cores() // settings.workers)
        engine = Engine.load(
            folder,
            variant=settings.variant,
            device=settings.device,
            threads=threads,
            lanes=MAX_LANES,
            expect_sha256=signed_sha256_of(folder, settings.verify_key, self._expected.get(name)),
        )
        assert engine.manifest is not None
        check_queue(engine.tokenizer_info, settings.max_queue_tokens)
        refuse_failed(engine.manifest.contract, allow=settings.allow_failed)
        _warn_of_contract(engine, engine.manifest.contract)
        engine.warm_up(batch_tokens(engine, settings))
        release_free_memory()
        return engine


def _warn_of_contract(engine: Engine, judged: Judgement | None) -> None:
    if judged is None:
        return
    was, here = "its contract was judged", machine.cpu().model
    then, now = f"{judged.variant} on {judged.provider}", f"{engine.variant} on {engine.provider}"
    warnings = {
        f"{was} for {then}, and {now} serves": then != now,
        sentence(judged): judged.verdict != "pass",
        f"{was} with {judged.threads} threads, and {engine.threads} serve": engine.threads < judged.threads,
        f"{was} on another CPU ({judged.cpu}, this is {here}): `kdc verify` judges it here": judged.cpu != here,
    }
    for warning, holds in warnings.items():
        if holds:
            log.warning("%s: %s", engine.task.name, warning)


def _identity(path: Path) -> object:
    """None: no artifact. All files count, so a half-copied artifact is tried again with each new file."""
    try:
        with os.scandir(path) as entries:
            files = {entry.name: entry.stat() for entry in entries}
        leads_to = path.resolve()
    except (OSError, RuntimeError):  # the latter: a loop of links
        return None
    if MANIFEST_NAME not in files:
        return None
    identities = sorted((name, file.st_ino, file.st_mtime_ns, file.st_size) for name, file in files.items())
    return leads_to, identities
