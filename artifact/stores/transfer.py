"""`kdc pull` and `kdc push`, and the cache of `kdc serve`.

A pull is verified and atomic. A push sends the manifest last, so nobody loads a half-sent artifact.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from kdc.artifact.contract.text import refuse_failed
from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import MANIFEST_NAME
from kdc.artifact.signature import Keys, read_signature, sign
from kdc.artifact.stores.addresses import BENTO, Repository, Tag, parse_address
from kdc.artifact.stores.receiving import holds, prepare, publish, receive_files, recover
from kdc.artifact.stores.sources import Documents, Outgoing, Source
from kdc.common.errors import KdcError
from kdc.common.files import write_whole
from kdc.common.frozen import Frozen
from kdc.common.progress import Meter


class Transfer(Frozen):
    sha256: str  # of the manifest
    task: str
    changed: bool  # False if it was there already
    files: int  # with manifest and signature
    bytes: int  # of all files
    seconds: float


class Pulled(Transfer):
    source: str
    folder: str
    received_bytes: int


class Pushed(Transfer):
    artifact: str
    target: str  # with commit or version
    sent_bytes: int


def pull_artifact(
    source: str, folder: Path, *, expect_sha256: str | None = None, verify_key: Keys = None, force: bool = False
) -> Pulled:
    """Pull an artifact into a new or empty folder.

    Args:
        expect_sha256: the manifest's, from its maker.
        verify_key: one of these keys must have signed the artifact.
        force: replace another artifact.

    Raises:
        InputError: the artifact is missing, not the expected one or not signed, or something else is in the folder.
    """
    began = time.perf_counter()
    store = open_source(source)
    documents = store.read_documents(expect_sha256, verify_key)
    received = fetch(store, documents, folder, force=force)
    received_bytes = (received or 0) + documents.size_bytes
    facts = _facts(documents, began, changed=received is not None)
    return Pulled(source=store.address, folder=str(folder), received_bytes=received_bytes, **facts)


def cached(
    name: str, address: str, *, allow_failed: bool = False, expect_sha256: str | None = None, verify_key: Keys = None
) -> Path:
    """An artifact's folder in the cache (`KDC_CACHE`, else the user's), fetched if missing. `name` is only printed."""
    source = open_source(address)
    documents = source.read_documents(expect_sha256, verify_key)
    manifest = documents.manifest
    refuse_failed(manifest.contract, allow=allow_failed)  # before fetching files
    # `Path.home` raises without a home; expanduser would make a folder `~`.
    cache = os.path.abspath(os.environ.get("KDC_CACHE") or Path.home() / ".cache" / "kdc")
    folder = Path(cache, "artifacts", manifest.sha256)
    # The hash names the folder, so other content is damaged.
    received = fetch(source, documents, folder, force=True, is_cache=True)
    how = "in the cache already" if received is None else f"{received + documents.size_bytes:,} bytes received"
    sys.stderr.write(f"fetched {name}: {source.address}, SHA-256 {manifest.sha256}, {how}\n")
    sys.stderr.flush()
    return folder


def open_source(address: str) -> Source:
    store = parse_address(address)
    if isinstance(store, Repository):
        from kdc.artifact.stores.hub import HubSource

        return HubSource(store)
    from kdc.artifact.stores.files import FileSource

    if isinstance(store, Tag):
        from kdc.artifact.stores.bento import folder_of

        return FileSource(str(folder_of(store)), address=f"{BENTO}{store}")
    return FileSource(store)


def fetch(source: Source, documents: Documents, folder: Path, *, force: bool, is_cache: bool = False) -> int | None:
    """Bring an artifact into a folder; processes with the same folder take turns.

    Returns:
        Bytes received; None if it was there, perhaps with another signature.
    """
    from filelock import FileLock

    manifest, folder = documents.manifest, Path(os.path.abspath(folder))
    if holds(folder, manifest, force=force, is_cache=is_cache):
        documents.renew_signature(folder)
        return None
    lock = folder.parent / f".{folder.name}.lock"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock), Meter() as meter:
            recover(folder)
            if holds(folder, manifest, force=force, is_cache=is_cache):
                documents.renew_signature(folder)
                return None
            partial = prepare(folder, manifest)
            received = receive_files(source, manifest, partial, meter)
            for name, content in documents.by_name.items():
                write_whole(partial / name, content)
            load_manifest(partial, verify=False, expect_sha256=manifest.sha256)
            publish(partial, folder)
            lock.unlink(missing_ok=True)  # waiters find the artifact
    except OSError as error:
        given = f"{error.filename or folder}: {error.strerror or error}"
        remedy = "make its parent writable; a mounted folder cannot be replaced: name one inside of it"
        raise KdcError("cannot write the artifact", given=given, remedy=remedy) from error
    return received


def push_artifact(
    artifact: Path,
    target: str,
    *,
    force: bool = False,
    allow_failed: bool = False,
    public: bool = False,
    sign_key: str | None = None,
) -> Pushed:
    """Push a folder's artifact.

    Args:
        force: replace another artifact, if the store keeps no versions.
        public: make a new hub repository public.
        sign_key: private key, see `sign`; None sends the signature that is there.
    """
    began = time.perf_counter()
    store = parse_address(target)
    manifest = load_manifest(artifact)
    refuse_failed(manifest.contract, allow=allow_failed)
    content = (artifact / MANIFEST_NAME).read_bytes()
    signature = read_signature(artifact) if sign_key is None else sign(manifest, content, sign_key)
    outgoing = Outgoing(manifest, content, signature, artifact)
    if isinstance(store, Repository):
        from kdc.artifact.stores.hub import push_to_hub

        sent, address = push_to_hub(store, outgoing, public=public)
    elif isinstance(store, Tag):
        from kdc.artifact.stores.bento import push_to_bento

        sent, address = push_to_bento(store, outgoing, force=force)
    else:
        from kdc.artifact.stores.files import push_to_files

        sent, address = push_to_files(store, outgoing, force=force)
    facts = _facts(outgoing, began, changed=sent is not None)
    return Pushed(artifact=str(artifact), target=address, sent_bytes=sent or 0, **facts)


def _facts(documents: Documents, began: float, *, changed: bool) -> dict[str, Any]:
    manifest = documents.manifest
    return {
        "sha256": manifest.sha256,
        "task": manifest.task.name,
        "changed": changed,
        "files": len(manifest.files) + len(documents.by_name),
        "bytes": manifest.size_bytes + documents.size_bytes,
        "seconds": round(time.perf_counter() - began, 3),
    }
