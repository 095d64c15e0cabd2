"""The artifacts that a worker serves, by name: loading, warming, and replacing them without a pause.

Reads the artifacts' folders. A changed artifact is loaded, verified and warmed beside the old one; then new requests go
to it, and the old one ends when its last request is answered. One that cannot be loaded is logged and refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import machine
from artifact import CPU_PROVIDER, MANIFEST_NAME, TokenizerInfo, load_manifest
from contract.terms import Judgement
from contract.text import refuse_failed, sentence
from errors import InputError, KdcError
from serving.batcher import Batcher, BatchReport
from serving.engine import Engine, Text
from serving.session import usable_cores
from serving.settings import ServeSettings
from serving.tokenizing import RowTokenizer
from transfer.addresses import name_of

log = logging.getLogger("kdc.serve")

_OTHER = re.compile(r"[^A-Za-z0-9._-]+")  # than what a name may have
# In lanes on a CPU a token costs the same in passes of 64 to 512 (benchmarks/split.py); more make others wait, fewer
# cost more calls.
_CPU_BATCH, _GPU_BATCH = 256, 4096
MOST_LANES = 4  # threads of more lanes would wait for the interpreter's lock
_INLINE_CHARS = 2000  # so few are tokenised faster than handed to a thread
Observe = Callable[[str, BatchReport], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says of a request's rows.

    Attributes:
        logits: float32 (rows, outputs).
        tokens: (rows,) tokens of each row, after the cut.
        truncated: (rows,) whether it was cut.
    """

    logits: np.ndarray
    tokens: list[int]
    truncated: list[bool]


class TooLong(InputError):
    """A row has more tokens than the model takes, and was not to be cut."""


class Model:
    """One loaded artifact behind its batcher. Made in the event loop.

    Attributes:
        name: in routes and metrics.
        engine: what answers.
        max_batch_tokens: padded tokens of a forward pass.
    """

    def __init__(self, name: str, engine: Engine, settings: ServeSettings, observe: Observe | None = None) -> None:
        self.name = name
        self.engine = engine
        self.max_batch_tokens = _batch_tokens(engine, settings)
        self._batcher = Batcher(
            engine.run,
            beside=engine.run_beside,
            lanes=engine.lanes,
            max_batch_tokens=self.max_batch_tokens,
            max_queue_tokens=settings.max_queue_tokens,
            max_queue_seconds=settings.max_queue_s,
            on_batch=None if observe is None else lambda report: observe(name, report),
        )
        self._other_side: RowTokenizer | None = None
        self._active = 0

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for a forward pass."""
        return self._batcher.queued_tokens

    async def answer(self, rows: Sequence[Text], *, truncate: bool = True, side: str | None = None) -> Answer:
        """Answer rows, sharing forward passes with other requests.

        Args:
            rows: at least one.
            truncate: cut rows that are too long.
            side: "left" or "right": where to cut; None as the artifact says.

        Raises:
            TooLong: a row is too long and was not to be cut.
            InputError: a row is not what the task takes.
            Overloaded: the queue is full.
            TooLarge: they have more tokens than the queue ever takes.
        """
        self._batcher.check_room(len(rows))
        self._active += 1
        try:
            return await self._answer(rows, truncate, side)
        finally:
            self._active -= 1

    async def _answer(self, rows: Sequence[Text], truncate: bool, side: str | None) -> Answer:
        few = sum(len(text) if isinstance(text, str) else len(text[0]) + len(text[1]) for text in rows) < _INLINE_CHARS
        encode = await self._encoder(side)
        encodings = encode(rows) if few else await asyncio.to_thread(encode, rows)
        truncated = [bool(encoding.overflowing) for encoding in encodings]
        if not truncate and any(truncated):
            most = self.engine.tokenizer_info.max_length
            raise TooLong(
                f"a text has more than {most} tokens",
                given=f"row {truncated.index(True)}",
                remedy="shorten it, or send truncate: true",
            )
        logits = await self._batcher.submit(encodings)
        return Answer(logits, [len(encoding) for encoding in encodings], truncated)

    async def close(self) -> None:
        """Answer what is in work, and end."""
        while self._active:  # a request may be tokenising, and submit its rows later
            await asyncio.sleep(0.01)
        await self._batcher.close()

    async def _encoder(self, side: str | None) -> Callable[[Sequence[Text]], list]:
        info: TokenizerInfo = self.engine.tokenizer_info
        if side is None or side == info.truncation_side:
            return self.engine.encode
        if self._other_side is None:  # it takes 50 ms, or ten times that with a large vocabulary
            self._other_side = await asyncio.to_thread(self.engine.tokenizer_cutting, side)
        tokenizer = self._other_side
        return lambda rows: tokenizer.encode(self.engine.checked(rows))


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
            name, judged.variant, judged.provider, engine.variant, engine.provider,
        )  # fmt: skip
    if judged.verdict != "pass":
        log.warning("%s: %s", name, sentence(judged))
    here = str(machine.cpu()["model"])
    if judged.cpu != here:
        log.warning(
            "%s: its contract was judged on another CPU (%s, this is %s): `kdc verify` judges it here",
            name, judged.cpu, here,
        )  # fmt: skip


def verify(settings: ServeSettings) -> None:
    """Look at everything that can be seen to be wrong before a worker starts.

    Raises:
        KdcError: no artifact, a damaged one, or a setting that cannot be.
    """
    _ = settings.api_key
    for path in parse_artifacts(settings.artifact).values():
        refuse_failed(load_manifest(path).contract, allow=settings.allow_failed)


class Registry:
    """All models of a worker.

    Args:
        settings: of the service.
        observe: told of every batch, with the model's name.
    """

    def __init__(self, settings: ServeSettings, observe: Observe | None = None) -> None:
        self._settings = settings
        self._observe = observe
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
            self.models[name] = Model(name, self._open(path), self._settings, self._observe)

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
        old, self.models[name] = self.models[name], Model(name, engine, self._settings, self._observe)
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
        engine.warm_up(_batch_tokens(engine, settings))
        return engine


def _batch_tokens(engine: Engine, settings: ServeSettings) -> int:
    return settings.max_batch_tokens or (_CPU_BATCH if engine.provider == CPU_PROVIDER else _GPU_BATCH)


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
