"""Local paths for `KDC_ARTIFACT`, such as `stable=hf://me/one,canary=runs/two/artifact`."""

import os
import re
from collections.abc import Collection
from pathlib import Path

from kdc.artifact.manifest import MANIFEST_NAME
from kdc.artifact.signature import Keys
from kdc.artifact.stores.addresses import is_address, name_of
from kdc.common.errors import InputError

_SHA256 = re.compile("[0-9a-f]{64}")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


def places_by_name(artifacts: str) -> dict[str, str]:
    """Split `[NAME=]PLACE,...`."""
    places: dict[str, str] = {}
    for part in _parts(artifacts):
        name, sign, place = part.partition("=")
        if not sign or "/" in name:  # the place holds an equals sign
            name, place = "", part
        if not name:
            name = _NOT_IN_NAMES.sub("-", name_of(place)).strip("-") or "model"
        if _NOT_IN_NAMES.search(name):
            what = "a name has characters that a route cannot have"
            raise InputError(what, given=name, remedy="use letters, digits, . _ and -")
        if name in places:
            raise InputError("two artifacts have the same name", given=name, remedy="name them: NAME=PATH")
        places[name] = place
    if not places:
        raise InputError("no artifact to serve", remedy="`kdc serve runs/TASK/artifact`, or set KDC_ARTIFACT")
    return places


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def paths_by_name(artifacts: str) -> dict[str, Path]:
    return {name: Path(place) for name, place in places_by_name(artifacts).items()}


def expected_sha256(given: str | None, names: Collection[str]) -> dict[str, str]:
    """Split `SHA256` (of a single artifact) or `NAME=SHA256,...`."""
    expected: dict[str, str] = {}
    for part in _parts(given or ""):
        name, _, value = part.rpartition("=")
        if not name and len(names) == 1:
            (name,) = names
        if name not in names or not _SHA256.fullmatch(value.lower()):
            remedy = f"64 hexadecimal digits, as `kdc inspect` prints them; NAME=SHA256 with {', '.join(names)}"
            raise InputError("no SHA-256 of an artifact that is served", given=part, remedy=remedy)
        expected[name] = value.lower()
    if given is not None and (missing := sorted(set(names) - set(expected))):
        what, remedy = "an artifact has no SHA-256, while others have one", "one for each: NAME=SHA256,NAME=SHA256"
        raise InputError(what, given=f"{given!r} with {', '.join(missing)}", remedy=remedy)
    return expected


def local(
    artifacts: str, *, allow_failed: bool = False, expect_sha256: str | None = None, verify_key: Keys = None
) -> str:
    """Download addresses; return the list with absolute paths, for workers in another folder. Symlinks are kept."""
    paths = places_by_name(artifacts)
    expected = expected_sha256(expect_sha256, paths)
    for name, place in paths.items():
        if is_address(place):
            from kdc.artifact.stores.transfer import cached  # takes long to import

            pin = expected.get(name)
            paths[name] = str(cached(name, place, allow_failed=allow_failed, expect_sha256=pin, verify_key=verify_key))
        else:
            paths[name] = os.path.abspath(place)
    return ",".join(f"{name}={path}" for name, path in paths.items())


def newest(runs: Path = Path("runs")) -> Path:
    manifests = list(runs.glob(f"*/artifact/{MANIFEST_NAME}"))
    if not manifests:
        remedy = "make one with `kdc compress --task pydocs --family minilm`, or name one: `kdc serve ARTIFACT`"
        raise InputError("there is no artifact to serve", given=f"{runs}/*/artifact", remedy=remedy)
    return max(manifests, key=lambda path: path.stat().st_mtime).parent
