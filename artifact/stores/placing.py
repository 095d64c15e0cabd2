"""Placing: a finished hidden folder takes the name of the target, so that an artifact is there whole or not at all.

Beside a target `copy` a pull may leave, if it is killed, `.copy.partial-*` (what arrived so far), `.copy.kdc-replaced`
(the artifact that was there before, while the new one takes the name) and `.copy.kdc-removed-*` (the old one, while it
is deleted). The next pull to the same target cleans up.
"""

import glob
import os
import shutil
import tempfile
from pathlib import Path

from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import MANIFEST_NAME, Manifest
from kdc.common.errors import InputError, KdcError

_REMOVED = ".kdc-removed-"


def holds(folder: Path, manifest: Manifest, *, force: bool) -> bool:
    """Whether the folder holds the artifact already; False where the artifact may be placed there.

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
    # Only what looks like an artifact is ever removed: a folder with a manifest and without subfolders.
    if not (folder / MANIFEST_NAME).exists() or any(path.is_dir() for path in folder.iterdir()):
        raise InputError(obstacle, given=folder, remedy="name another folder, one that is not there yet")
    if not force:
        raise InputError(obstacle, given=folder, remedy="name another folder, or --force to replace it")
    return False


def prepare(folder: Path, manifest: Manifest) -> Path:
    """The hidden folder beside the target in which an artifact's files arrive: new, or as an earlier pull left it.

    What pulls of other artifacts left is removed.

    Raises:
        InputError: it belongs to somebody else, whose links in it could lead anywhere.
    """
    partial = folder.parent / f".{folder.name}.partial-{manifest.sha256[:16]}"
    for kind in (_REMOVED, ".partial-"):
        for old in folder.parent.glob(f".{glob.escape(folder.name)}{kind}*"):
            if old != partial and old.is_dir() and not old.is_symlink():
                shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(mode=0o700, exist_ok=True)
    if partial.is_symlink() or (hasattr(os, "geteuid") and partial.lstat().st_uid != os.geteuid()):
        raise InputError("another user's folder is in the way", given=partial, remedy="remove it, or pull elsewhere")
    return partial


def recover(folder: Path) -> None:
    """Recover from a pull that was killed half-way through: restore the old artifact if the new one never took its
    name, otherwise delete the old one."""
    if not _replaced(folder).is_dir():
        return
    if os.path.lexists(folder):
        _delete_replaced(folder)
    else:
        os.rename(_replaced(folder), folder)


def publish(partial: Path, folder: Path) -> None:
    """Rename the finished hidden folder to the target; an old artifact is moved aside, and back if that fails."""
    partial.chmod(0o755)  # a server may run as another user
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
    if not folder.exists():
        os.rename(partial, folder)
    else:
        os.rename(folder, _replaced(folder))
        try:
            os.rename(partial, folder)
        except BaseException:
            os.rename(_replaced(folder), folder)
            raise
        _delete_replaced(folder)
    if hasattr(os, "O_DIRECTORY"):  # the new name, too, must survive a power cut
        handle = os.open(folder.parent, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replaced(folder: Path) -> Path:
    """The name of an old artifact while the new one takes its place."""
    return folder.parent / f".{folder.name}.kdc-replaced"


def _delete_replaced(folder: Path) -> None:
    """Delete the old artifact, under a name that `recover` never restores: half deleted it is no artifact any more."""
    removed = tempfile.mkdtemp(prefix=f".{folder.name}{_REMOVED}", dir=folder.parent)
    os.rename(_replaced(folder), removed)
    shutil.rmtree(removed, ignore_errors=True)
