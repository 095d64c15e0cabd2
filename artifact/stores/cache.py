"""What `kdc serve` does with an address: the artifact from the cache, or into it, verified."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from kdc.artifact.contract.text import refuse_failed
from kdc.artifact.stores.progress import Meter
from kdc.artifact.stores.pull import fetch
from kdc.artifact.stores.sources import open_source, read_manifest

VARIABLE = "KDC_CACHE"


def cache_folder() -> Path:
    """`KDC_CACHE`, or kdc's folder where this user's caches are."""
    if given := os.environ.get(VARIABLE):
        return Path(os.path.abspath(given))
    caches = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(caches) if os.path.isabs(caches) else Path.home() / ".cache") / "kdc"


def cached(name: str, address: str, *, allow_failed: bool = False) -> Path:
    """The folder in the cache that holds the artifact of an address. Only the manifest is fetched if it is there.

    Args:
        name: that it will have in the service, for people.
        address: see `kdc.artifact.stores.addresses`.
        allow_failed: also one that failed its contract.

    Raises:
        InputError: there is no artifact, or it failed its contract.
        KdcError: what arrived is damaged, the store cannot be reached, or the disk is full.
    """
    store = open_source(address)
    manifest, content = read_manifest(store)
    refuse_failed(manifest.contract, allow=allow_failed)  # before its bytes are fetched
    folder = cache_folder() / "artifacts" / manifest.sha256
    with Meter() as meter:
        # By its hash nothing else is ever there but a damaged copy, which is replaced.
        fetched = fetch(store, manifest, content, folder, force=True, meter=meter)
    how = f"{fetched.received:,} bytes received" if fetched.changed else "in the cache already"
    sys.stderr.write(f"fetched {name}: {store.shown}, SHA-256 {manifest.sha256}, {how}\n")
    sys.stderr.flush()
    return folder
