"""`kdc pull`: an artifact from a store into a folder, which is there when all of it is, and verified.

Files arrive in a hidden folder beside the target. What a pull that was cut off left there is used by the next one:
files with the right hash as they are, the last one from where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import MANIFEST_NAME, FileInfo, Manifest
from kdc.artifact.stores.progress import Meter
from kdc.artifact.stores.sources import Source, open_source, read_manifest
from kdc.common.errors import InputError, KdcError

_READ_BYTES = 1024 * 1024
_REMOVED = ".kdc-removed-"
_SPARE_BYTES = 16 * 1024 * 1024  # of a disk: file systems need some for themselves


@dataclass
class Fetched:
    """What a pull did.

    Attributes:
        manifest: of the artifact.
        changed: whether the folder is new; False where the same artifact was in it.
        received: bytes that came from the store, the manifest's included.
    """

    manifest: Manifest
    changed: bool
    received: int


def pull_for_people(
    source: str, folder: Path, *, expect_sha256: str | None = None, force: bool = False
) -> dict[str, Any]:
    """Pull an artifact, with a bar on a terminal.

    Args:
        source: address or path.
        folder: where it shall be; it may be there empty.
        expect_sha256: the manifest's SHA-256 as its maker told it.
        force: also in the place of another artifact.

    Returns:
        What was done, for `--json`.

    Raises:
        InputError: there is no artifact, another one than was expected, or something else at `folder`.
        KdcError: what arrived is damaged, the store cannot be reached, or the disk is full.
    """
    began = time.perf_counter()
    store = open_source(source)
    manifest, content = read_manifest(store, expect_sha256)
    with Meter() as meter:
        fetched = fetch(store, manifest, content, folder, force=force, meter=meter)
    total = sum(info.size for info in manifest.files.values())
    return {
        "source": store.shown,
        "folder": str(folder),
        "sha256": manifest.sha256,
        "task": manifest.task.name,
        "changed": fetched.changed,
        "files": len(manifest.files) + 1,
        "bytes": total + len(content),
        "received_bytes": fetched.received,
        "seconds": round(time.perf_counter() - began, 3),
    }


def fetch(store: Source, manifest: Manifest, content: bytes, folder: Path, *, force: bool, meter: Meter) -> Fetched:
    """Bring an artifact into a folder; two at once for the same folder take turns.

    Args:
        store: where it is.
        manifest: its manifest, as read from there.
        content: the manifest's bytes.
        folder: where it shall be.
        force: also in the place of another artifact, or of a damaged one.
        meter: told of bytes.

    Raises:
        InputError: something else is at `folder`.
        KdcError: what arrived is damaged, the store cannot be reached, or the disk is full.
    """
    from filelock import FileLock

    folder = Path(os.path.abspath(folder))
    if _holds(folder, manifest, force):
        return Fetched(manifest, False, len(content))
    partial = folder.parent / f".{folder.name}.partial-{manifest.sha256[:16]}"
    lock = folder.parent / f".{folder.name}.lock"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            _put_back(folder)
            if _holds(folder, manifest, force):  # another one brought it meanwhile
                return Fetched(manifest, False, len(content))
            _prepare(partial, folder)
            received = _fetch_files(store, manifest, partial, meter)
            _write(partial / MANIFEST_NAME, content)
            load_manifest(partial, verify=False, expect_sha256=manifest.sha256)
            _publish(partial, folder)
            lock.unlink(missing_ok=True)  # who waits for it finds the folder there
    except OSError as error:
        raise KdcError(
            "cannot write the artifact",
            given=f"{error.filename or folder}: {error.strerror or error}",
            remedy="see that the folder's parent can be written to; a mounted folder cannot be replaced: "
            "name one inside of it",
        ) from error
    return Fetched(manifest, True, received + len(content))


def _holds(folder: Path, manifest: Manifest, force: bool) -> bool:
    """Whether the artifact is in the folder already; False where it may be put there.

    Raises:
        InputError: something else is there, and must not be replaced.
    """
    try:
        there = load_manifest(folder)
        if there.sha256 == manifest.sha256:
            return True
        what = f"another artifact is there: {there.task.name}, SHA-256 {there.sha256}"
    except InputError:
        what = "something else is there"
    except KdcError as error:
        what = f"a damaged artifact is there: {error.what}"
    if not os.path.lexists(folder) or (folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())):
        return False
    if folder.is_symlink():
        raise InputError(what, given=f"{folder}, a link", remedy="name a folder, not a link to one")
    # Only what looks like an artifact is ever removed: a flat folder with a manifest.
    if not folder.is_dir() or not (folder / MANIFEST_NAME).exists() or any(each.is_dir() for each in folder.iterdir()):
        raise InputError(what, given=folder, remedy="name another folder, one that is not there yet")
    if not force:
        raise InputError(what, given=folder, remedy="name another folder, or --force to replace it")
    return False


def _prepare(partial: Path, folder: Path) -> None:
    """The hidden folder, as an earlier pull left it or new; those of other artifacts for the same target are removed.

    Raises:
        InputError: somebody else made it: links in it could lead anywhere.
    """
    for old in folder.parent.glob(f".{_escaped(folder.name)}{_REMOVED}*"):
        shutil.rmtree(old, ignore_errors=True)
    for old in folder.parent.glob(f".{_escaped(folder.name)}.partial-*"):
        if old != partial and old.is_dir() and not old.is_symlink():
            shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(mode=0o700, exist_ok=True)
    status = partial.lstat()
    if partial.is_symlink() or (hasattr(os, "geteuid") and status.st_uid != os.geteuid()):
        raise InputError("another user's folder is in the way", given=partial, remedy="remove it, or pull elsewhere")


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _fetch_files(store: Source, manifest: Manifest, partial: Path, meter: Meter) -> int:
    """Bring all files, small ones first; how many bytes came from the store."""
    _check_room(manifest, partial)
    meter.start(f"pull {store.shown}", sum(info.size for info in manifest.files.values()))
    received = 0
    for name, info in sorted(manifest.files.items(), key=lambda item: (item[1].size, item[0])):
        received += _fetch_file(store, name, info, partial / name, meter)
    return received


def _check_room(manifest: Manifest, partial: Path) -> None:
    there = sum(path.lstat().st_size for path in partial.iterdir())
    needed = sum(info.size for info in manifest.files.values()) - there + _SPARE_BYTES
    free = shutil.disk_usage(partial).free
    if needed > free:
        raise KdcError(
            "the disk has no room for the artifact",
            given=f"{partial.parent}: {free} bytes free, {needed} needed",
            remedy="free some, or pull elsewhere (`kdc serve`: set KDC_CACHE)",
        )


def _fetch_file(store: Source, name: str, info: FileInfo, path: Path, meter: Meter) -> int:
    """Bring one file: as it is, from where it stopped, or anew; how many bytes came from the store.

    Raises:
        KdcError: what arrived is not what the manifest says.
    """
    received = 0
    for again in (False, True):
        start, count, digest = _fetch_rest(store, name, info, path, meter)
        received += count
        if digest == info.sha256:
            return received
        # What an earlier pull left may have been damaged, or of another version: then once more from the start.
        path.unlink()
        meter.advance(-info.size)
        if again or not start:
            break
    raise KdcError(
        "a file of the artifact was changed on the way, or in the store",
        given=f"{store.shown}/{name}: SHA-256 {digest}, the manifest says {info.sha256}",
        remedy="pull again; if it stays so, push the artifact again from a copy that `kdc inspect` finds whole",
    )


def _fetch_rest(store: Source, name: str, info: FileInfo, path: Path, meter: Meter) -> tuple[int, int, str]:
    """Append what is missing of a file; the byte it began at, the bytes that came, the SHA-256 of the whole."""
    # No link is followed: the folder is ours, but lies where others may write.
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o644)
    with os.fdopen(handle, "r+b") as file:
        if os.fstat(handle).st_size > info.size:
            file.truncate(0)
        digest, start = _hash_of(file)
        meter.advance(start)
        if start == info.size:
            return start, 0, digest.hexdigest()
        opened = store.open(name, start)
        with contextlib.closing(opened.chunks):
            _check_size(store, name, opened.size, info)
            if opened.start != start:  # it cannot begin elsewhere
                meter.advance(-start)
                digest, start = hashlib.sha256(), 0
                file.seek(0)
                file.truncate()
            count = 0
            for chunk in opened.chunks:
                count += len(chunk)
                _check_size(store, name, start + count, info, exact=False)
                file.write(chunk)
                digest.update(chunk)
                meter.advance(len(chunk))
        file.flush()
        os.fsync(handle)
    _check_size(store, name, start + count, info)
    return start, count, digest.hexdigest()


def _hash_of(file: Any) -> tuple[Any, int]:
    """The running SHA-256 of what is there, and its length; the file then stands at its end."""
    digest, length = hashlib.sha256(), 0
    while chunk := file.read(_READ_BYTES):
        digest.update(chunk)
        length += len(chunk)
    return digest, length


def _check_size(store: Source, name: str, size: int | None, info: FileInfo, *, exact: bool = True) -> None:
    if size is None or size == info.size or (not exact and size < info.size):
        return
    what = "fewer" if size < info.size else "more"
    raise KdcError(
        f"the store has {what} bytes of a file than the manifest says",
        given=f"{store.shown}/{name}: {size} bytes{'' if exact else ' and more'}, the manifest says {info.size}",
        remedy="pull again; if it stays so, push the artifact again from a copy that `kdc inspect` finds whole",
    )


def _write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _aside(folder: Path) -> Path:
    """Where what is replaced waits until the other has its name."""
    return folder.parent / f".{folder.name}.kdc-replaced"


def _put_back(folder: Path) -> None:
    """What a pull moved aside that was killed before the other had the name, or else before this was removed."""
    if not _aside(folder).is_dir():
        return
    if os.path.lexists(folder):
        _discard(folder)
    else:
        os.rename(_aside(folder), folder)


def _discard(folder: Path) -> None:
    """Remove what was replaced, by way of a name that nobody puts back: cut off, it is no artifact any more."""
    removed = tempfile.mkdtemp(prefix=f".{folder.name}{_REMOVED}", dir=folder.parent)
    os.rename(_aside(folder), removed)
    shutil.rmtree(removed, ignore_errors=True)


def _publish(partial: Path, folder: Path) -> None:
    """Rename the finished folder onto its name; what was there is moved aside first, and back if that fails."""
    partial.chmod(0o755)  # a server may run as another user
    if not folder.exists():
        os.rename(partial, folder)
    elif not any(folder.iterdir()):
        folder.rmdir()
        os.rename(partial, folder)
    else:
        aside = _aside(folder)
        os.rename(folder, aside)
        try:
            os.rename(partial, folder)
        except BaseException:
            os.rename(aside, folder)
            raise
        _discard(folder)
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder.parent, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
