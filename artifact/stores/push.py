"""`kdc push`: an artifact from a folder into a store, the manifest last: what is half there is no artifact."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from kdc.artifact.contract.text import refuse_failed
from kdc.artifact.folder import load_manifest, parse_manifest
from kdc.artifact.manifest import MANIFEST_NAME, Manifest
from kdc.artifact.stores.addresses import Files, Repository, Tag, parse_address
from kdc.artifact.stores.progress import Meter
from kdc.common.errors import KdcError


def push_for_people(
    artifact: Path, target: str, *, force: bool = False, allow_failed: bool = False, public: bool = False
) -> dict[str, Any]:
    """Push an artifact, with a bar on a terminal.

    Args:
        artifact: its folder.
        target: address or path.
        force: also in the place of another artifact, where the store keeps no versions.
        allow_failed: also one that failed its contract.
        public: make a hub repository that is not there yet public.

    Returns:
        What was done, for `--json`.

    Raises:
        InputError: no artifact, one that failed its contract, a wrong address, or something else at the target.
        KdcError: the artifact is damaged, or the store refused.
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
    total = sum(info.size for info in manifest.files.values()) + len(content)
    return {
        "artifact": str(artifact),
        "target": address,
        "sha256": manifest.sha256,
        "task": manifest.task.name,
        "changed": sent is not None,
        "files": len(manifest.files) + 1,
        "bytes": total,
        "sent_bytes": sent or 0,
        "seconds": round(time.perf_counter() - began, 3),
    }


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
    """The bytes that were sent (None: all was there), and the address of just this artifact."""
    if isinstance(place, Repository):
        from kdc.artifact.stores.hub_push import push_to_hub

        return push_to_hub(place, artifact, manifest, content, public=public, meter=meter)
    if isinstance(place, Tag):
        from kdc.artifact.stores.bento import push_to_bento

        return push_to_bento(place, artifact, manifest, content, force=force)
    from kdc.artifact.stores.files import FileTarget

    store = FileTarget(place.url)
    return store.send(artifact, manifest, content, force=force, meter=meter), store.shown
