"""The cache of `kdc serve`: the artifact of an address, fetched and verified once and then found on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from kdc.artifact.contract.text import refuse_failed
from kdc.artifact.stores.pull import fetch, open_source
from kdc.artifact.stores.sources import read_manifest
from kdc.common.progress import Meter

VARIABLE = "KDC_CACHE"


def cache_folder() -> Path:
    """The folder that `KDC_CACHE` names, or kdc's folder among this user's caches."""
    if folder := os.environ.get(VARIABLE):
        return Path(os.path.abspath(folder))
    caches = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(caches) if os.path.isabs(caches) else Path.home() / ".cache") / "kdc"


def cached(name: str, address: str, *, allow_failed: bool = False) -> Path:
    """The folder in the cache that holds the artifact of an address; what is there already is not fetched again.

    Args:
        name: the name that the artifact will have in the service, for the line that is printed.
        address: see `kdc.artifact.stores.addresses`.
        allow_failed: also accept an artifact that failed its contract.

    Raises:
        InputError: there is no artifact, or it failed its contract.
        KdcError: what arrived is damaged, the store refused or did not answer, or the disk is full.
    """
    source = open_source(address)
    manifest, content = read_manifest(source)
    refuse_failed(manifest.contract, allow=allow_failed)  # before its files are fetched
    folder = cache_folder() / "artifacts" / manifest.sha256
    with Meter() as meter:
        # The folder is named by the hash, so that whatever else is there is a damaged copy, which may be replaced.
        received = fetch(source, manifest, content, folder, force=True, meter=meter)
    how = "in the cache already" if received is None else f"{received + len(content):,} bytes received"
    sys.stderr.write(f"fetched {name}: {source.shown}, SHA-256 {manifest.sha256}, {how}\n")
    sys.stderr.flush()
    return folder
