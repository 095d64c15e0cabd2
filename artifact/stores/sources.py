"""Interface of a store to pull from, and an artifact to push."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from kdc.artifact.folder import parse_manifest
from kdc.artifact.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest
from kdc.artifact.stores.hub_layout import path_of
from kdc.common.errors import InputError


@dataclass(frozen=True)
class Outgoing:
    """A verified artifact to push."""

    folder: Path
    manifest: Manifest
    content: bytes  # of `manifest.json`


@dataclass(frozen=True)
class Opened:
    """A file being read."""

    start: int  # as requested, or 0 if the store cannot seek
    size: int | None  # of the whole file; None: unknown
    chunks: Generator[bytes, None, None]  # close it to end early


class Source(ABC):
    """A store that holds one artifact."""

    address: str  # without secrets
    has_hub_layout = False  # as `read_manifest` saw it

    @abstractmethod
    def open(self, name: str, offset: int = 0) -> Opened:
        """Read a file from byte `offset`.

        Raises:
            FileNotFoundError: it is not there.
            KdcError: the store failed; reading chunks raises it too.
        """

    def path_of(self, name: str) -> str:
        """Where the store has a file of the artifact."""
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

    def read_manifest(self, expect_sha256: str | None = None) -> tuple[Manifest, bytes]:
        """The manifest and its bytes.

        Raises:
            InputError: the artifact is missing, or not the expected one.
            KdcError: it is damaged, or the store failed.
        """
        for self.has_hub_layout in (False, True):
            with contextlib.suppress(FileNotFoundError):
                content = self.read(self.path_of(MANIFEST_NAME), MAX_MANIFEST_BYTES + 1)
                break
        else:
            remedy = f"give the place that holds {MANIFEST_NAME}; `kdc push ARTIFACT {self.address}` puts one there"
            raise InputError("there is no artifact here", given=self.address, remedy=remedy)
        return parse_manifest(
            content, f"{self.address}/{self.path_of(MANIFEST_NAME)}", expect_sha256=expect_sha256
        ), content
