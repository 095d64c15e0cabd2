"""`kdc push`: an artifact from a folder into a store. The manifest goes last: a half-sent artifact is no artifact."""

import time
from pathlib import Path

from kdc.artifact.contract.text import refuse_failed
from kdc.artifact.folder import load_manifest, parse_manifest
from kdc.artifact.manifest import MANIFEST_NAME
from kdc.artifact.stores.addresses import Repository, Tag, parse_address
from kdc.artifact.stores.sources import Outgoing
from kdc.common.errors import KdcError
from kdc.common.frozen import Frozen
from kdc.common.progress import Meter


class Pushed(Frozen):
    """What `kdc push` did."""

    artifact: str  # the folder that was pushed
    target: str  # the address of just this artifact: with the commit on the hub, with the version in BentoML's store
    sha256: str  # of the manifest
    task: str  # its name
    changed: bool  # whether anything was sent; False where the same artifact was there already
    files: int  # their number, the manifest included
    bytes: int  # their size in all
    sent_bytes: int
    seconds: float  # wall-clock time


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
    outgoing = Outgoing(artifact, manifest, (artifact / MANIFEST_NAME).read_bytes())
    if parse_manifest(outgoing.content, artifact).sha256 != manifest.sha256:
        raise KdcError("the artifact changed while it was read", given=artifact, remedy="push it again")
    sent: int | None  # bytes; None: all was there
    with Meter() as meter:
        if isinstance(place, Repository):
            from kdc.artifact.stores.hub import push_to_hub

            sent, address = push_to_hub(place, outgoing, public=public, meter=meter)
        elif isinstance(place, Tag):
            from kdc.artifact.stores.bento import push_to_bento

            sent, address = push_to_bento(place, outgoing, force=force)
        else:
            from kdc.artifact.stores.files import FileTarget

            store = FileTarget(place)
            sent, address = store.send(outgoing, force=force, meter=meter), store.shown
    return Pushed(
        artifact=str(artifact),
        target=address,
        sha256=manifest.sha256,
        task=manifest.task.name,
        changed=sent is not None,
        files=len(manifest.files) + 1,
        bytes=outgoing.size_bytes,
        sent_bytes=sent or 0,
        seconds=round(time.perf_counter() - began, 3),
    )
