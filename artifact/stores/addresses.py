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
    name: str  # owner/name
    revision: str | None  # branch, tag or commit; None: the default

    def __str__(self) -> str:
        return f"{HUB}{self.name}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Tag:
    name: str
    version: str | None  # None: newest, or new in a push

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}:{self.version}"


def is_address(text: str) -> bool:
    return "://" in text or text.startswith(BENTO)


def parse_address(text: str) -> Repository | Tag | str:
    """A str is a URL or path for fsspec.

    Raises:
        InputError: it is empty, or an impossible hub address or tag.
    """
    if text.startswith(HUB):
        if match := _REPOSITORY.fullmatch(text.removeprefix(HUB)):
            return Repository(match[1], match[2])
        remedy = "hf://owner/name or hf://owner/name@branch"
        raise InputError("this is not a hub repository", given=text, remedy=remedy)
    if text.startswith(BENTO):
        if match := _TAG.fullmatch(text.removeprefix(BENTO)):
            return Tag(match[1], match[2])
        raise InputError("this is not a BentoML tag", given=text, remedy="bento:NAME or bento:NAME:VERSION")
    if not text.strip():
        raise InputError("the address is empty", remedy="a path, s3://bucket/path, hf://owner/name or bento:NAME")
    return text.rstrip("/") or "/"


def name_of(text: str) -> str:
    """A service's name for an artifact: the last part of its address, or the one before `artifact`."""
    address = parse_address(text) if is_address(text) else text
    if not isinstance(address, str):
        return address.name.rpartition("/")[2]
    path = PurePath(re.split("[?#]", without_secrets(address))[0].partition("://")[2] if is_address(text) else text)
    return path.parent.name if path.name == "artifact" else path.name
