"""`kdc push`: an artifact from a folder into a store. The manifest goes last: a half-sent artifact is no artifact."""

from __future__ import annotations

import time
from pathlib import Path

from kdc.artifact.contract.text import refuse_failed
from kdc.artifact.folder import load_manifest, parse_manifest
from kdc.artifact.manifest import MANIFEST_NAME, Manifest
from kdc.artifact.stores.addresses import Files, Repository, Tag, parse_address
from kdc.common.errors import KdcError
from kdc.common.frozen import Frozen
from kdc.common.progress import Meter


class Pushed(Frozen):
    """What `kdc push` did.

    Attributes:
        artifact: the folder that was pushed.
        target: the address of just this artifact: with the commit on the hub, with the version in BentoML's store.
        sha256: of the manifest.
        task: the task's name.
        changed: whether anything was sent; False where the same artifact was there already.
        files: number of files, the manifest included.
        bytes: their size in all.
        sent_bytes: bytes that were sent.
        seconds: wall-clock time.
    """

    artifact: str
    target: str
    sha256: str
    task: str
    changed: bool
    files: int
    bytes: int
    sent_bytes: int
    seconds: float


def push_artifact(
    artifact: Path, target: str, *, force: bool = False, allow_failed: bool = False, public: bool = False
) -> Pushed:
    """Push an artifact, with a progress bar on a terminal.

    Args:
        artifact: its folder.
        target: address or path.
        force: replace another artifact, where the store keeps no versions.
        allow_failed: also push an artifact that failed its contract.
        public: where a new hub repository is made, make it public.

    Raises:
        InputError: no artifact, one that failed its contract, a wrong address, or something else at the target.
        KdcError: the artifact is damaged, or the store refused or did not answer.
    """
    began = time.perf_counter()
    place = parse_address(target)
    manifest = load_manifest(artifact)
    refuse_failed(manifest.contract, allow=allow_failed)
    content = (artifact / MANIFEST_NAME).read_bytes()
    if parse_manifest(content, artifact).sha256 != manifest.sha256:
        raise KdcError("the artifact changed while it was read", given=artifact, remedy="push it again")
    with Meter() as meter:
        sent, address = _send(place, artifact, manifest, content, force=force, public=public, meter=meter)
    return Pushed(
        artifact=str(artifact),
        target=address,
        sha256=manifest.sha256,
        task=manifest.task.name,
        changed=sent is not None,
        files=len(manifest.files) + 1,
        bytes=manifest.size_bytes + len(content),
        sent_bytes=sent or 0,
        seconds=round(time.perf_counter() - began, 3),
    )


def _send(
    place: Files | Repository | Tag,
    artifact: Path,
    manifest: Manifest,
    content: bytes,
    *,
    force: bool,
    public: bool,
    meter: Meter,
) -> tuple[int | None, str]:
    """Send to the store of a place.

    Returns:
        The number of bytes that were sent (None: all was there), and the address of just this artifact.
    """
    if isinstance(place, Repository):
        from kdc.artifact.stores.hub_push import push_to_hub

        return push_to_hub(place, artifact, manifest, content, public=public, meter=meter)
    if isinstance(place, Tag):
        from kdc.artifact.stores.bento import push_to_bento

        return push_to_bento(place, artifact, manifest, content, force=force)
    from kdc.artifact.stores.files import FileTarget

    store = FileTarget(place.url)
    return store.send(artifact, manifest, content, force=force, meter=meter), store.shown
