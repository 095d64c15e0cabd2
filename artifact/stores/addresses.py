"""What an address names: `hf://owner/name[@revision]`, `bento:NAME[:VERSION]`, a URL of fsspec, or a path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

from kdc.common.errors import InputError

HUB, BENTO = "hf://", "bento:"
_REPOSITORY = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*?)/?(?:@([^@\s]+))?")
_TAG = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?::([A-Za-z0-9][A-Za-z0-9._-]*))?")
_USER = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY = re.compile(r"(://[^\s?'\"<>]*\?)[^\s'\"<>]+")


@dataclass(frozen=True)
class Repository:
    """A model repository of the hub.

    Attributes:
        name: owner/name.
        revision: branch, tag or commit; None: the default branch.
    """

    name: str
    revision: str | None


@dataclass(frozen=True)
class Tag:
    """A model of BentoML's store.

    Attributes:
        name: of the model.
        version: None: the newest, or for a push a new one.
    """

    name: str
    version: str | None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}:{self.version}"


@dataclass(frozen=True)
class Files:
    """A folder of any file system that fsspec knows, this machine's included."""

    url: str


def is_address(text: str) -> bool:
    """Whether it is more than a path of this machine."""
    return "://" in text or text.startswith(BENTO)


def parse_address(text: str) -> Repository | Tag | Files:
    """What an address names.

    Raises:
        InputError: a hub address or a tag that cannot be.
    """
    if text.startswith(HUB):
        found = _REPOSITORY.fullmatch(text.removeprefix(HUB))
        if found is None:
            raise InputError(
                "this is no repository of the hub",
                given=shown(text),
                remedy="hf://owner/name or hf://owner/name@branch",
            )
        return Repository(found[1], found[2])
    if text.startswith(BENTO):
        found = _TAG.fullmatch(text.removeprefix(BENTO))
        if found is None:
            raise InputError("this is no tag of BentoML's store", given=text, remedy="bento:NAME or bento:NAME:VERSION")
        return Tag(found[1], found[2])
    if not text.strip():
        raise InputError("the address is empty", remedy="a path, s3://bucket/path, hf://owner/name or bento:NAME")
    return Files(text.rstrip("/") or "/")


def name_of(text: str) -> str:
    """The last name of an address or a path; that of the folder around it where it is `artifact`, as in a run.

    Raises:
        InputError: a hub address or a tag that cannot be.
    """
    place: Repository | Tag | Files = parse_address(text) if is_address(text) else Files(text)
    if not isinstance(place, Files):
        return place.name.rpartition("/")[2]
    path = PurePath(_QUERY.sub("", place.url).partition("://")[2] if is_address(text) else text)
    return path.parent.name if path.name == "artifact" else path.name


def shown(text: str) -> str:
    """Text with its addresses as people and logs may see them: no user, no password, no signed query."""
    return _QUERY.sub(r"\1...", _USER.sub("...@", text))
