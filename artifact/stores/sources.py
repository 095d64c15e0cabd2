"""A place to pull from: what is asked of it, the errors of its packages as ours, and which one an address means."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from kdc.artifact.folder import parse_manifest
from kdc.artifact.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest
from kdc.artifact.stores.addresses import Repository, Tag, parse_address, shown
from kdc.common.errors import InputError, KdcError

_REMEDY = (
    "see the name, the credentials and the endpoint, which the package of this scheme reads; the same command goes on "
    "where this one stopped"
)
_MOST_TOLD = 600  # characters of a package's error; some hold a whole page


@dataclass(frozen=True)
class Opened:
    """A file that is being read.

    Attributes:
        start: the byte at which `chunks` begins: the one asked for, or 0 where the store cannot begin elsewhere.
        size: of the whole file; None where the store does not say.
        chunks: its bytes from `start` on. Close it to end early.
    """

    start: int
    size: int | None
    chunks: Generator[bytes, None, None]


class Source(Protocol):
    """A store that holds one artifact."""

    @property
    def shown(self) -> str:
        """Its address, for people."""

    def read_manifest(self, limit: int) -> bytes:
        """At most `limit` bytes of `manifest.json`.

        Raises:
            InputError: there is none.
            KdcError: the store cannot be asked.
        """

    def open(self, name: str, offset: int) -> Opened:
        """A file from a byte on. Reading may raise KdcError too.

        Raises:
            KdcError: it is not there, or the store cannot be asked.
        """


def open_source(address: str) -> Source:
    """The store of an address.

    Raises:
        InputError: the address cannot be, or the package that reaches it is not installed.
        KdcError: the store cannot be asked.
    """
    place = parse_address(address)
    if isinstance(place, Repository):
        from kdc.artifact.stores.hub import HubSource

        return HubSource(place)
    from kdc.artifact.stores.files import FileSource

    if isinstance(place, Tag):
        from kdc.artifact.stores.bento import folder_of

        return FileSource(str(folder_of(place)), told=f"bento:{place}")
    return FileSource(place.url)


def read_manifest(source: Source, expect_sha256: str | None = None) -> tuple[Manifest, bytes]:
    """The manifest of what is there, and its bytes.

    Raises:
        InputError: there is no artifact, or another one than `expect_sha256` names.
        KdcError: it is damaged, or the store cannot be asked.
    """
    content = source.read_manifest(MAX_MANIFEST_BYTES + 1)
    return parse_manifest(content, f"{source.shown}/{MANIFEST_NAME}", expect_sha256=expect_sha256), content


def no_artifact(address: str, why: str = "") -> InputError:
    """There is no manifest at an address."""
    return InputError(
        "there is no artifact here" + (f": {why}" if why else ""),
        given=address,
        remedy=f"give the place that holds {MANIFEST_NAME}; `kdc push ARTIFACT {address}` puts one there",
    )


def missing(address: str) -> KdcError:
    """A file that the manifest names is not there."""
    return KdcError(
        "a file of the artifact is missing",
        given=address,
        remedy="push the artifact again: `kdc push` sends what is not there",
    )


@contextmanager
def reaching(address: str, remedy: str = _REMEDY, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """What a store's package raises, as an error of ours.

    Args:
        address: as people may see it.
        remedy: what to do.
        passing: errors that the caller knows what to make of.

    Raises:
        KdcError: the store refused, or did not answer.
    """
    try:
        yield
    except Exception as error:  # each package has its own, and they share no base
        if isinstance(error, (KdcError, *passing)):
            raise
        told = shown(str(error))[:_MOST_TOLD]
        raise KdcError(
            "the store refused, or did not answer", given=f"{address}: {type(error).__name__}: {told}", remedy=remedy
        ) from error
