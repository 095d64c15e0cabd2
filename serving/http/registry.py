"""The artifacts that a worker serves, by name: loading, warming, and replacing them without a pause.

Reads the artifacts' folders. A changed artifact is loaded, verified and warmed beside the old one; then new requests go
to it, and the old one ends when its last request is answered. One that cannot be loaded is logged and refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.text import refuse_failed, sentence
from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import MANIFEST_NAME
from kdc.artifact.stores.addresses import name_of
from kdc.common import machine
from kdc.common.cores import usable_cores
from kdc.common.errors import InputError, KdcError
from kdc.serving.engine.engine import Engine
from kdc.serving.http import tracing
from kdc.serving.http.model import Model, Observe, batch_tokens
from kdc.serving.http.settings import ServeSettings

if TYPE_CHECKING:
    from kdc.serving.http.spans import Tracing

log = logging.getLogger("kdc.serve")

_OTHER = re.compile(r"[^A-Za-z0-9._-]+")  # than what a name may have
MOST_LANES = 4  # threads of more lanes would wait for the interpreter's lock


def split_artifacts(text: str) -> dict[str, str]:
    """`PLACE` or `NAME=PLACE`, separated by commas, as places by name; a place is a path or an address.

    One alone is named for its task's run folder, its repository or its tag. Names stand in routes, headers and
    metrics, so they are of letters, digits, `.`, `_` and `-`; others become `-`.

    Raises:
        InputError: none, a name with other characters, or one name twice.
    """
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, sign, place = part.partition("=")
        if not sign or "/" in name:  # a path or an address that holds an equals sign
            name, place = "", part
        if not name:
            name = _OTHER.sub("-", name_of(place)).strip("-") or "model"
        if _OTHER.search(name):
            raise InputError(
                "a name has characters that a route cannot have", given=name, remedy="use letters, digits, . _ and -"
            )
        if name in found:
            raise InputError("two artifacts have the same name", given=name, remedy="name them: NAME=PATH")
        found[name] = place
    if not found:
        raise InputError("no artifact to serve", remedy="`kdc serve runs/TASK/artifact`, or set KDC_ARTIFACT")
    return found


def parse_artifacts(text: str) -> dict[str, Path]:
    """The same of paths alone.

    Raises:
        InputError: as `split_artifacts`.
    """
    return {name: Path(place) for name, place in split_artifacts(text).items()}


def _warn_of_contract(engine: Engine, judged: Judgement | None) -> None:
    """Say where an artifact's contract holds less here than it may seem."""
    name = engine.task.name
    if judged is None:
        return
    if (engine.variant, engine.provider) != (judged.variant, judged.provider):
        log.warning(
            "%s: its contract was judged for %s on %s, and %s on %s serves",
            name,
            judged.variant,
            judged.provider,
            engine.variant,
            engine.provider,
        )
    if judged.verdict != "pass":
        log.warning("%s: %s", name, sentence(judged))
    if judged.threads is not None and engine.threads < judged.threads:
        log.warning("%s: its contract was judged with %d threads, and %d serve", name, judged.threads, engine.threads)
    here = str(machine.cpu()["model"])
    if judged.cpu != here:
        log.warning(
            "%s: its contract was judged on another CPU (%s, this is %s): `kdc verify` judges it here",
            name,
            judged.cpu,
            here,
        )


def verify(settings: ServeSettings) -> None:
    """Look at everything that can be seen to be wrong before a worker starts.

    Raises:
        KdcError: no artifact, a damaged one, or a setting that cannot be.
    """
    _ = settings.api_key
    tracing.wanted()
    for path in parse_artifacts(settings.artifact).values():
        refuse_failed(load_manifest(path).contract, allow=settings.allow_failed)


class Registry:
    """All models of a worker.

    Args:
        settings: of the service.
        observe: told of every batch, with the model's name.
        traces: makes the spans of requests; None where there are none.
    """

    def __init__(self, settings: ServeSettings, observe: Observe | None = None, traces: Tracing | None = None) -> None:
        self._settings = settings
        self._observe = observe
        self._traces = traces
        self._paths = parse_artifacts(settings.artifact)
        self._seen: dict[str, object] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self.models: dict[str, Model] = {}

    @property
    def first(self) -> Model:
        """The model of routes that name none."""
        return next(iter(self.models.values()))

    def load(self) -> None:
        """Load and warm all artifacts.

        Raises:
            KdcError: one of them cannot be loaded.
        """
        for name, path in self._paths.items():
            self._seen[name] = _signature(path)
            self.models[name] = Model(name, self._open(path), self._settings, self._observe, self._traces)

    async def watch(self) -> None:
        """Replace artifacts whose folder changed, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.reload_s)
            for name, path in self._paths.items():
                signature = _signature(path)
                if signature is not None and signature != self._seen[name]:
                    self._seen[name] = signature
                    await self._replace(name, path)

    async def close(self) -> None:
        """Answer what is queued everywhere, and end."""
        await asyncio.gather(*(model.close() for model in self.models.values()), *self._closing)

    async def _replace(self, name: str, path: Path) -> None:
        try:
            engine = await asyncio.to_thread(self._open, path)
        except KdcError as error:
            log.error("%s: the new artifact is refused, the old one stays: %s (%s)", name, error.what, error.given)
            return
        except Exception:  # whatever it was, the next artifact must be looked at
            log.exception("%s: the new artifact is refused, the old one stays", name)
            return
        new = Model(name, engine, self._settings, self._observe, self._traces)
        old, self.models[name] = self.models[name], new
        log.info("%s: now serves %s", name, path.resolve())
        task = asyncio.create_task(old.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _open(self, path: Path) -> Engine:
        settings = self._settings
        threads = settings.threads or max(1, usable_cores() // settings.workers)
        engine = Engine.load(path, variant=settings.variant, device=settings.device, threads=threads, lanes=MOST_LANES)
        assert engine.manifest is not None
        refuse_failed(engine.manifest.contract, allow=settings.allow_failed)
        _warn_of_contract(engine, engine.manifest.contract)
        engine.warm_up(batch_tokens(engine, settings))
        return engine


def _signature(path: Path) -> object:
    """What changes when the artifact does: where the link leads, and the identity of its files. None while it is away.

    All files, not the manifest alone: one that is copied into place may be seen half there, and is looked at again.
    """
    try:
        with os.scandir(path) as entries:
            files = {entry.name: entry.stat() for entry in entries}
    except OSError:
        return None
    if MANIFEST_NAME not in files:
        return None
    identities = sorted((name, file.st_ino, file.st_mtime_ns, file.st_size) for name, file in files.items())
    return path.resolve(), identities
