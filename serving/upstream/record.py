"""What an artifact's audits found: a file that workers share, and restarts keep."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from kdc.common.errors import InputError
from kdc.common.files import write_whole
from kdc.common.frozen import Frozen
from kdc.serving.upstream.sequence import CONFIDENCE, EPOCH, interval, is_exceeded

_EXPECTED = 0.02  # share without a budget
_WAIT_S = 10.0  # other workers hold the lock for ms
_SETTLED_S = 2.0  # a file system's time stamps are coarse
_FORGET = "remove the file, or start with `kdc serve --resume`: both forget the audits"

Stamp = tuple[int, int, int]


class Standing(Frozen):
    audits: int = Field(le=2**53, strict=True)
    differing: int = Field(ge=0, strict=True)
    epoch: int = Field(1, ge=1, strict=True)  # number of the newest
    newest: tuple[int, int] = (0, 0)  # audits of the newest epoch: differing, all
    stopped: AwareDatetime | None  # when the artifact stopped answering
    budget: float | None = Field(gt=0, lt=1)  # largest share of differing answers

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if not 0 <= self.newest[0] <= self.newest[1] or self.differing > self.audits:
            raise ValueError("more audits differ than were made")
        return self

    @property
    def estimate(self) -> float:
        return self.differing / self.audits if self.audits else 0.0

    @property
    def low(self) -> float:
        return self._interval[0]

    @property
    def high(self) -> float:
        return self._interval[1]

    @property
    def budget_left(self) -> float | None:
        """Negative if exceeded; None without a budget."""
        return None if self.budget is None else self.budget - self.estimate

    @cached_property
    def _interval(self) -> tuple[float, float]:
        return interval(self.differing, self.audits, expected=self.budget or _EXPECTED, confidence=CONFIDENCE)


def _sum(before: Standing, audits: int, differing: int) -> Standing:
    (differed, made), is_full = before.newest, before.newest[1] >= EPOCH
    after = Standing(
        audits=before.audits + audits,
        differing=before.differing + differing,
        epoch=before.epoch + is_full,
        newest=(differing, audits) if is_full else (differed + differing, made + audits),
        stopped=before.stopped,
        budget=before.budget,
    )
    counts = after.differing, after.audits
    if after.stopped is None and after.budget and is_exceeded(after.budget, counts, after.newest, after.epoch):
        return after.model_copy(update={"stopped": datetime.now(UTC).replace(microsecond=0)})
    return after


class AuditRecord:
    """One artifact's record. All methods but `read` sync the disk, which may take a tenth of a second.

    Methods raise InputError if the file is damaged (not `resume`), or cannot be read, written or locked.

    Args:
        artifact_sha256: the manifest's, which names the file.
        budget: largest share of differing answers; None: never stop.
    """

    def __init__(self, folder: Path, artifact_sha256: str, budget: float | None) -> None:
        self._path = folder / f"{artifact_sha256}.json"
        self._empty = Standing(audits=0, differing=0, stopped=None, budget=budget)
        self._last: tuple[Stamp, Standing] | None = None  # what `read` saw

    def check(self) -> Standing:
        """Check that the file is whole and can be written."""
        return self.add(0, 0)

    def add(self, audits: int, differing: int) -> Standing:
        """Add counts. They stop the artifact if its share of differing answers is shown to exceed the budget."""
        with self._locked():
            after = _sum(self._load(), audits, differing)
            write_whole(self._path, after.model_dump_json() + "\n")
        return after

    def read(self) -> Standing:
        """Reads the file only if it changed."""
        with self._refusals():
            try:
                status = self._path.stat()
            except FileNotFoundError:
                return self._empty
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if self._last is not None and self._last[0] == stamp:
                return self._last[1]
            standing = self._load()
            is_settled = time.time() - status.st_mtime > _SETTLED_S
            self._last = (stamp, standing) if is_settled else None
        return standing

    def resume(self) -> None:
        """Forget the counts and the stop."""
        with self._locked():
            self._path.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        from filelock import FileLock

        with self._refusals():
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(self._path.with_suffix(".lock"), timeout=_WAIT_S):
                yield

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except (OSError, NotImplementedError) as error:  # a lock's time-out is an OSError
            reason = getattr(error, "strerror", None) or str(error)
            remedy = "set KDC_STATE_DIR to a folder on a local disk that this user may write"
            raise InputError(
                "cannot use the record of the audits", given=f"{self._path}: {reason}", remedy=remedy
            ) from error

    def _load(self) -> Standing:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return self._empty
        try:
            standing = Standing.model_validate_json(content)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, each['loc']))}: {each['msg']}".removeprefix(": ") for each in error.errors()
            )
            given = f"{self._path}: {problems}"
            raise InputError("the record of the audits is damaged", given=given, remedy=_FORGET) from error
        return standing.model_copy(update={"budget": self._empty.budget})
