"""What every store must answer so that an artifact can be pulled from it, and what is handed to a store in a push."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from kdc.artifact.folder import parse_manifest
from kdc.artifact.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest
from kdc.common.errors import InputError


@dataclass(frozen=True)
class Outgoing:
    """A verified artifact that is to be pushed."""

    folder: Path
    manifest: Manifest
    content: bytes  # the bytes of `manifest.json`


@dataclass(frozen=True)
class Opened:
    """A file of a store that is being read."""

    start: int  # the byte at which `chunks` begins: the one that was asked for, or 0 where the store cannot do that
    size: int | None  # size of the whole file in bytes; None where the store does not say
    chunks: Generator[bytes, None, None]  # the file's bytes from `start` on. Close the generator to end early


class Source(ABC):
    """A store that holds one artifact."""

    shown: str  # the address of the store, as people may see it

    @abstractmethod
    def open(self, name: str, offset: int = 0) -> Opened:
        """A file from a byte on. Reading its chunks may raise KdcError too.

        Raises:
            FileNotFoundError: it is not there.
            KdcError: the store refused, or did not answer.
        """

    def has_unfinished_push(self) -> bool:
        """Whether a push to it was cut off, where the store can tell."""
        return False

    def read(self, name: str, limit: int) -> bytes:
        """At most `limit` bytes of a file; raises what `open` does."""
        content = bytearray()
        with contextlib.closing(self.open(name).chunks) as chunks:
            for chunk in chunks:
                content += chunk
                if len(content) >= limit:
                    break
        return bytes(content[:limit])

    def read_manifest(self, expect_sha256: str | None = None) -> tuple[Manifest, bytes]:
        """The artifact's manifest, and its bytes.

        Raises:
            InputError: there is no artifact, or another one than `expect_sha256` names.
            KdcError: it is damaged, or the store refused or did not answer.
        """
        try:
            content = self.read(MANIFEST_NAME, MAX_MANIFEST_BYTES + 1)
        except FileNotFoundError:
            why = ": a push to it was not finished" if self.has_unfinished_push() else ""
            raise InputError(
                f"there is no artifact here{why}",
                given=self.shown,
                remedy=f"give the place that holds {MANIFEST_NAME}; `kdc push ARTIFACT {self.shown}` puts one there",
            ) from None
        return parse_manifest(content, f"{self.shown}/{MANIFEST_NAME}", expect_sha256=expect_sha256), content
