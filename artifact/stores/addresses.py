"""Addresses of artifacts: `hf://owner/name[@revision]`, `bento:NAME[:VERSION]`, a URL of fsspec, or a path."""

import re
from dataclasses import dataclass
from pathlib import PurePath

from kdc.common.errors import InputError, without_secrets

HUB, BENTO = "hf://", "bento:"
_REPOSITORY = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*?)/?(?:@([^@\s]+))?")
_TAG = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?::([A-Za-z0-9][A-Za-z0-9._-]*))?")


@dataclass(frozen=True)
class Repository:
    """A model repository of the Hugging Face hub."""

    name: str  # owner/name
    revision: str | None  # branch, tag or commit; None: the default branch

    def __str__(self) -> str:
        return f"{HUB}{self.name}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Tag:
    """A model of BentoML's store."""

    name: str
    version: str | None  # None stands for the newest version, and in a push for a new one

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}:{self.version}"


def is_address(text: str) -> bool:
    """Whether a text is more than a path of this machine."""
    return "://" in text or text.startswith(BENTO)


def parse_address(text: str) -> Repository | Tag | str:
    """What an address names; a text is the URL or path of a folder on any file system that fsspec knows.

    Raises:
        InputError: it is empty, or no possible hub address or tag.
    """
    if text.startswith(HUB):
        match = _REPOSITORY.fullmatch(text.removeprefix(HUB))
        if match is None:
            raise InputError(
                "this is no repository of the hub",
                given=text,
                remedy="hf://owner/name or hf://owner/name@branch",
            )
        return Repository(match[1], match[2])
    if text.startswith(BENTO):
        match = _TAG.fullmatch(text.removeprefix(BENTO))
        if match is None:
            raise InputError("this is no tag of BentoML's store", given=text, remedy="bento:NAME or bento:NAME:VERSION")
        return Tag(match[1], match[2])
    if not text.strip():
        raise InputError("the address is empty", remedy="a path, s3://bucket/path, hf://owner/name or bento:NAME")
    return text.rstrip("/") or "/"


def name_of(text: str) -> str:
    """The name that a service gives the artifact of an address or a path: the last part of it.

    Where that is `artifact`, as in a run directory, it is the name of the folder around it.

    Raises:
        InputError: no possible hub address or tag.
    """
    place = parse_address(text) if is_address(text) else text
    if not isinstance(place, str):
        return place.name.rpartition("/")[2]
    path = PurePath(re.split("[?#]", without_secrets(place))[0].partition("://")[2] if is_address(text) else text)
    return path.parent.name if path.name == "artifact" else path.name
