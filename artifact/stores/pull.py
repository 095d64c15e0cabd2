"""`kdc pull`: an artifact from a store into a folder, which is there only when all of it is, and verified.

Files arrive in a hidden folder beside the target. What a pull that was cut off left there is used by the next one.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import MANIFEST_NAME, Manifest
from kdc.artifact.stores.addresses import BENTO, Repository, Tag, parse_address
from kdc.artifact.stores.placing import holds, partial_folder, prepare, publish, recover
from kdc.artifact.stores.receiving import receive_files
from kdc.artifact.stores.sources import Source, read_manifest
from kdc.common.errors import KdcError
from kdc.common.files import write_whole
from kdc.common.frozen import Frozen
from kdc.common.progress import Meter


class Pulled(Frozen):
    """What `kdc pull` did.

    Attributes:
        source: the address that it pulled from.
        folder: where the artifact is.
        sha256: of the manifest.
        task: the task's name.
        changed: whether the folder is new; False where the same artifact was in it already.
        files: number of files, the manifest included.
        bytes: their size in all.
        received_bytes: bytes that came from the store.
        seconds: wall-clock time.
    """

    source: str
    folder: str
    sha256: str
    task: str
    changed: bool
    files: int
    bytes: int
    received_bytes: int
    seconds: float


def pull_artifact(source: str, folder: Path, *, expect_sha256: str | None = None, force: bool = False) -> Pulled:
    """Pull an artifact, with a progress bar on a terminal.

    Args:
        source: address or path.
        folder: where the artifact shall be; an empty folder may be there.
        expect_sha256: the manifest's SHA-256 as the artifact's maker told it.
        force: replace another artifact.

    Raises:
        InputError: there is no artifact, another one than was expected, or something else at `folder`.
        KdcError: what arrived is damaged, the store refused or did not answer, or the disk is full.
    """
    began = time.perf_counter()
    store = open_source(source)
    manifest, content = read_manifest(store, expect_sha256)
    with Meter() as meter:
        received = fetch(store, manifest, content, folder, force=force, meter=meter)
    return Pulled(
        source=store.shown,
        folder=str(folder),
        sha256=manifest.sha256,
        task=manifest.task.name,
        changed=received is not None,
        files=len(manifest.files) + 1,
        bytes=manifest.size_bytes + len(content),
        received_bytes=(received or 0) + len(content),
        seconds=round(time.perf_counter() - began, 3),
    )


def open_source(address: str) -> Source:
    """The store that an address names, opened for reading.

    Raises:
        InputError: the address is not possible, or the package that reaches it is not installed.
        KdcError: the store refused, or did not answer.
    """
    place = parse_address(address)
    if isinstance(place, Repository):
        from kdc.artifact.stores.hub import HubSource

        return HubSource(place)
    from kdc.artifact.stores.files import FileSource

    if isinstance(place, Tag):
        from kdc.artifact.stores.bento import folder_of

        return FileSource(str(folder_of(place)), shown=f"{BENTO}{place}")
    return FileSource(place.url)


def fetch(source: Source, manifest: Manifest, content: bytes, folder: Path, *, force: bool, meter: Meter) -> int | None:
    """Bring an artifact into a folder. Two processes that do so at once for the same folder take turns.

    Args:
        source: the store.
        manifest: the artifact's manifest, as read from the store.
        content: the manifest's bytes.
        folder: where the artifact shall be.
        force: replace another artifact, or a damaged one.
        meter: shows the progress.

    Returns:
        The number of bytes that came from the store; None where the same artifact was in the folder already.

    Raises:
        InputError: something else is at `folder`.
        KdcError: what arrived is damaged, the store refused or did not answer, or the disk is full.
    """
    from filelock import FileLock

    folder = Path(os.path.abspath(folder))
    if holds(folder, manifest, force=force):
        return None
    partial = partial_folder(folder, manifest)
    lock = folder.parent / f".{folder.name}.lock"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            recover(folder)
            if holds(folder, manifest, force=force):  # another process brought it meanwhile
                return None
            prepare(partial, folder)
            received = receive_files(source, manifest, partial, meter)
            write_whole(partial / MANIFEST_NAME, content)
            load_manifest(partial, verify=False, expect_sha256=manifest.sha256)
            publish(partial, folder)
            lock.unlink(missing_ok=True)  # whoever waits for it finds the artifact in the folder
    except OSError as error:
        raise KdcError(
            "cannot write the artifact",
            given=f"{error.filename or folder}: {error.strerror or error}",
            remedy="see that the folder's parent can be written to; a mounted folder cannot be replaced: "
            "name one inside of it",
        ) from error
    return received
