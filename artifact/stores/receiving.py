"""Receiving: the files of an artifact arrive in a hidden folder, which then takes the name of the target.

An artifact is there whole or not at all. Size and SHA-256 of each file are checked. A file that an earlier pull left in
the hidden folder is completed.

A pull that is killed may leave two folders beside a target `copy`: `.copy.partial-*` with the files so far, and
`.copy.kdc-replaced` with the artifact before, until the new one has the name. The next pull to the target cleans up.
"""

import contextlib
import glob
import json
import os
import re
import shutil
from pathlib import Path

from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import MANIFEST_NAME, FileInfo, Manifest
from kdc.artifact.stores.sources import Source
from kdc.common.errors import InputError, KdcError
from kdc.common.files import sha256_of
from kdc.common.progress import Meter

_LEFT = re.compile(r"\.kdc-push\.json|\..+\.tmp")  # what a push into the folder, or a writer that was killed, has left
_SPARE_BYTES = 16 * 1024 * 1024  # bytes of the disk that stay free: file systems need some for themselves
_PULL_AGAIN = "pull again; if it stays so, push the artifact again from a copy that `kdc inspect` finds whole"


def holds(folder: Path, manifest: Manifest, *, force: bool, is_cache: bool = False) -> bool:
    """Whether the folder holds the artifact already; False if the artifact may be placed there. Anything else in a
    folder of the cache is a damaged copy, and may be replaced.

    Raises:
        InputError: something else is there, which must not be replaced.
    """
    try:
        present = load_manifest(folder)
        if present.sha256 == manifest.sha256:
            return True
        obstacle = f"another artifact is there: {present.task.name}, SHA-256 {present.sha256}"
    except InputError:
        obstacle = "something else is there"
    except KdcError as error:
        obstacle = f"a damaged artifact is there: {error.what}"
    if not os.path.lexists(folder) or (folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())):
        return False
    if folder.is_symlink():
        raise InputError(obstacle, given=f"{folder}, a link", remedy="name a folder, not a link to one")
    if not is_cache and (strangers := _strangers(folder, manifest)):
        given = f"{folder}: {', '.join(strangers[:5])}"
        raise InputError(obstacle, given=given, remedy="name another folder, one that is not there yet")
    if not force:
        raise InputError(obstacle, given=folder, remedy="name another folder, or --force to replace it")
    return False


def _strangers(folder: Path, coming: Manifest) -> list[str]:
    """Names of a folder's entries that belong to no artifact: they must not be removed."""
    if not folder.is_dir():
        return [folder.name]
    manifest = folder / MANIFEST_NAME
    known = _files_of(manifest, coming) if manifest.is_file() else set()
    return sorted(path.name for path in folder.iterdir() if not (path.is_file() and _is_known(path.name, known)))


def _is_known(name: str, known: set[str]) -> bool:
    return name in known or (bool(known) and _LEFT.fullmatch(name) is not None)


def _files_of(path: Path, coming: Manifest) -> set[str]:
    """The files of the artifact whose manifest, maybe a damaged one, is at a path; none if it is another program's."""
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError):  # a damaged one of the artifact that is to come, if its files lie beside it
        beside = {name for name in coming.files if (path.parent / name).exists()}
        return {MANIFEST_NAME, *beside} if beside else set()
    if not isinstance(document, dict) or not {"schema_version", "kdc_version", "files"} <= document.keys():
        return set()
    return {MANIFEST_NAME, *document["files"]} if isinstance(document["files"], dict) else {MANIFEST_NAME}


def prepare(folder: Path, manifest: Manifest) -> Path:
    """The hidden folder beside the target in which an artifact's files arrive: new, or as an earlier pull left it.
    Hidden folders of other artifacts are removed.

    Raises:
        InputError: it belongs to somebody else, whose links in it could lead anywhere.
    """
    partial = folder.parent / f".{folder.name}.partial-{manifest.sha256[:16]}"
    for old in folder.parent.glob(f".{glob.escape(folder.name)}.partial-*"):
        if old != partial and old.is_dir() and not old.is_symlink():
            shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(mode=0o700, exist_ok=True)
    if partial.is_symlink() or (hasattr(os, "geteuid") and partial.lstat().st_uid != os.geteuid()):
        raise InputError("another user's folder is in the way", given=partial, remedy="remove it, or pull elsewhere")
    return partial


def receive_files(source: Source, manifest: Manifest, folder: Path, meter: Meter) -> int:
    """Bring all files of an artifact into a folder, small ones first.

    Returns:
        The number of bytes that came from the store.

    Raises:
        KdcError: the disk is full, the store refused or did not answer, or what arrived is damaged.
    """
    present = sum(path.lstat().st_size for path in folder.iterdir())
    needed, free = manifest.size_bytes - present + _SPARE_BYTES, shutil.disk_usage(folder).free
    if needed > free:
        raise KdcError(
            "the disk has no room for the artifact",
            given=f"{folder.parent}: {free} bytes free, {needed} needed",
            remedy="free some, or pull elsewhere (`kdc serve`: set KDC_CACHE)",
        )
    meter.start(f"pull {source.address}", manifest.size_bytes)
    received = 0
    for name, info in sorted(manifest.files.items(), key=lambda item: (item[1].size, item[0])):
        received += _receive_file(source, name, info, folder / name, meter)
    return received


def _receive_file(source: Source, name: str, info: FileInfo, path: Path, meter: Meter) -> int:
    """Complete one file, and fetch it once more from its start if its hash is wrong; return the bytes that came."""
    received = 0
    start: int | None = None
    while start != 0:  # else all of it came just now, and the store itself is wrong
        start, count = _receive_rest(source, name, info, path, meter)
        received += count
        digest = sha256_of(path)
        if digest == info.sha256:
            return received
        path.unlink()
        meter.advance(-info.size)
    raise KdcError(
        "a file of the artifact was changed on the way, or in the store",
        given=f"{source.address}/{name}: SHA-256 {digest}, the manifest says {info.sha256}",
        remedy=_PULL_AGAIN,
    )


def _receive_rest(source: Source, name: str, info: FileInfo, path: Path, meter: Meter) -> tuple[int, int]:
    """Append the missing bytes of a file; return the first byte that was missing, and how many came."""
    # The hidden folder is ours but lies where others may write, so that no link in it is followed.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, 0o644), "r+b") as file:
        start, count = os.fstat(file.fileno()).st_size, 0
        if start == info.size:
            meter.advance(start)
            return start, count
        try:
            opened = source.open(name, start if start < info.size else 0)
        except FileNotFoundError as error:
            raise KdcError(
                "a file of the artifact is missing",
                given=f"{source.address}/{name}",
                remedy="push the artifact again: `kdc push` sends what is missing",
            ) from error
        with contextlib.closing(opened.chunks):
            _check_size(source, name, opened.size, info)
            start = file.seek(opened.start)
            file.truncate()
            meter.advance(start)
            for chunk in opened.chunks:
                count += len(chunk)
                if start + count > info.size:
                    break
                file.write(chunk)
                meter.advance(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    _check_size(source, name, start + count, info)
    return start, count


def _check_size(source: Source, name: str, size: int | None, info: FileInfo) -> None:
    """Refuse another number of bytes than the manifest's, if the store tells one."""
    if size is not None and size != info.size:
        raise KdcError(
            f"the store has {'fewer' if size < info.size else 'more'} bytes of a file than the manifest says",
            given=f"{source.address}/{name}: {size} bytes, the manifest says {info.size}",
            remedy=_PULL_AGAIN,
        )


def recover(folder: Path) -> None:
    """Recover from a pull that was killed half-way through: restore the old artifact if the new one never took its
    name, otherwise delete the old one."""
    old = _replaced(folder)
    if os.path.lexists(folder) or not (old / MANIFEST_NAME).exists():
        _delete(old)
    else:
        os.rename(old, folder)


def publish(partial: Path, folder: Path) -> None:
    """Rename the finished hidden folder to the target; an old artifact is moved aside, and back if that fails."""
    partial.chmod(0o755)  # a server may run as another user
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
    old = _replaced(folder)
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(partial, folder)
    except BaseException:
        if old.exists():
            os.rename(old, folder)
        raise
    _delete(old)
    if hasattr(os, "O_DIRECTORY"):  # the new name, too, must survive a power cut
        handle = os.open(folder.parent, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replaced(folder: Path) -> Path:
    """The name of an old artifact while the new one takes its place."""
    return folder.parent / f".{folder.name}.kdc-replaced"


def _delete(folder: Path) -> None:
    """Delete an old artifact, its manifest first: `recover` restores none without."""
    if not folder.is_symlink():  # of another user
        with contextlib.suppress(OSError):  # not ours to delete; or no folder
            (folder / MANIFEST_NAME).unlink()
    shutil.rmtree(folder, ignore_errors=True)
