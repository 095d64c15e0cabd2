"""A store to pull from, and an artifact to push."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from kdc.artifact.folder import parse_manifest
from kdc.artifact.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, SIGNATURE_NAME, Manifest
from kdc.artifact.signature import MAX_SIGNATURE_BYTES, Keys, read_signature, signed_sha256
from kdc.artifact.stores.hub_layout import path_of
from kdc.common.errors import InputError, KdcError
from kdc.common.files import write_whole


@dataclass(frozen=True)
class Documents:
    manifest: Manifest
    content: bytes  # of `manifest.json`
    signature: bytes | None  # of `signature.json`

    @property
    def by_name(self) -> dict[str, bytes]:
        """Contents in the order of writing, the manifest last."""
        signature = {} if self.signature is None else {SIGNATURE_NAME: self.signature}
        return signature | {MANIFEST_NAME: self.content}

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.by_name.values()))

    def renew_signature(self, folder: Path) -> bool:
        """Write a new signature into the folder; return whether it was new."""
        if self.signature is None or self.signature == read_signature(folder):
            return False
        write_whole(folder / SIGNATURE_NAME, self.signature, shared=True)
        return True


@dataclass(frozen=True)
class Outgoing(Documents):
    folder: Path


@dataclass(frozen=True)
class Opened:
    start: int  # as requested, or 0 if the store cannot seek
    size: int | None  # of the whole file; None: unknown
    chunks: Generator[bytes, None, None]  # close it to end early


class Source(ABC):
    address: str  # without secrets
    has_hub_layout = False  # as `read_documents` saw it

    @abstractmethod
    def open(self, name: str, offset: int = 0) -> Opened:
        """Read a file from byte `offset`.

        Raises:
            FileNotFoundError: it is not there.
            KdcError: the store failed; reading chunks raises it too.
        """

    def path_of(self, name: str) -> str:
        return path_of(name) if self.has_hub_layout else name

    def read(self, name: str, limit: int) -> bytes:
        """Read at most `limit` bytes. Raises like `open`."""
        content = bytearray()
        with contextlib.closing(self.open(name).chunks) as chunks:
            for chunk in chunks:
                content += chunk
                if len(content) >= limit:
                    break
        return bytes(content[:limit])

    def read_documents(self, expect_sha256: str | None = None, verify_key: Keys = None) -> Documents:
        """Read the manifest and its signature.

        Raises:
            InputError: the artifact is missing, not the expected one, or not signed by a key.
        """
        for self.has_hub_layout in (False, True):
            with contextlib.suppress(FileNotFoundError):
                content = self.read(self.path_of(MANIFEST_NAME), MAX_MANIFEST_BYTES + 1)
                break
        else:
            remedy = f"give the place that holds {MANIFEST_NAME}; `kdc push ARTIFACT {self.address}` puts one there"
            raise InputError("there is no artifact here", given=self.address, remedy=remedy)
        signature = None
        # Some stores refuse to tell that a file is missing.
        with contextlib.suppress(FileNotFoundError, *([KdcError] if verify_key is None else [])):
            signature = self.read(self.path_of(SIGNATURE_NAME), MAX_SIGNATURE_BYTES + 1)
        expected = signed_sha256(signature, verify_key, self.address, expect_sha256)
        manifest = parse_manifest(content, f"{self.address}/{self.path_of(MANIFEST_NAME)}", expect_sha256=expected)
        return Documents(manifest, content, signature)
