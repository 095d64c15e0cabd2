"""What every store must answer so that an artifact can be pulled from it, and the errors that all stores share."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

from kdc.artifact.folder import parse_manifest
from kdc.artifact.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest
from kdc.common.errors import InputError, KdcError


@dataclass(frozen=True)
class Opened:
    """A file of a store that is being read.

    Attributes:
        start: the byte at which `chunks` begins: the one that was asked for, or 0 where the store can only begin there.
        size: of the whole file in bytes; None where the store does not say.
        chunks: the file's bytes from `start` on. Close the generator to end early.
    """

    start: int
    size: int | None
    chunks: Generator[bytes, None, None]


class Source(Protocol):
    """A store that holds one artifact."""

    @property
    def shown(self) -> str:
        """Its address, as people may see it."""

    def read_manifest(self, limit: int) -> bytes:
        """At most `limit` bytes of `manifest.json`.

        Raises:
            InputError: there is none.
            KdcError: the store refused, or did not answer.
        """

    def open(self, name: str, offset: int) -> Opened:
        """A file from a byte on. Reading its chunks may raise KdcError too.

        Raises:
            KdcError: the file is missing, or the store refused or did not answer.
        """


def read_manifest(source: Source, expect_sha256: str | None = None) -> tuple[Manifest, bytes]:
    """The manifest of the artifact in a store, and its bytes.

    Raises:
        InputError: there is no artifact, or another one than `expect_sha256` names.
        KdcError: it is damaged, or the store refused or did not answer.
    """
    content = source.read_manifest(MAX_MANIFEST_BYTES + 1)
    return parse_manifest(content, f"{source.shown}/{MANIFEST_NAME}", expect_sha256=expect_sha256), content


def no_artifact(address: str, why: str = "") -> InputError:
    """The error for an address without a manifest."""
    return InputError(
        "there is no artifact here" + (f": {why}" if why else ""),
        given=address,
        remedy=f"give the place that holds {MANIFEST_NAME}; `kdc push ARTIFACT {address}` puts one there",
    )


def missing(address: str) -> KdcError:
    """The error for a file that the manifest names and the store does not have."""
    return KdcError(
        "a file of the artifact is missing",
        given=address,
        remedy="push the artifact again: `kdc push` sends what is missing",
    )
