"""The artifact's folder: writing its manifest, and reading it back with a check of every file.

Reads `manifest.json` and every file that it names (size and SHA-256). Writes `manifest.json`.
"""

import hashlib
import json
import mmap
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from io import BufferedReader
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdc.artifact.graphs import is_self_contained
from kdc.artifact.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, SCHEMA_VERSION, FileInfo, Manifest
from kdc.common.errors import InputError, KdcError
from kdc.common.files import sha256_of, write_whole


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, FileInfo]:
    """Size and SHA-256 of the named files in a folder, for `Manifest.files`."""
    return {name: FileInfo(sha256=sha256_of(folder / name), size=(folder / name).stat().st_size) for name in names}


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write `manifest.json`, which is then there whole or not at all, into the folder with all other files.

    Returns:
        The manifest with its `sha256`.

    Raises:
        KdcError: a file that the manifest names is missing or differs, or the manifest is larger than 1 MiB.
    """
    document = manifest.model_dump(mode="json")
    document["sha256"] = _canonical_sha256(document)
    content = (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    if len(content) > MAX_MANIFEST_BYTES:
        raise KdcError(
            "the manifest is too large",
            given=f"{len(content)} bytes",
            remedy=f"keep it under {MAX_MANIFEST_BYTES} bytes: shorter label names, fewer table rows",
        )
    _check_sizes(folder, manifest)
    check_contents(folder, manifest)
    write_whole(folder / MANIFEST_NAME, content)
    (folder / MANIFEST_NAME).chmod(0o644)  # whatever the umask: a server that runs as another user reads it too
    return manifest.model_copy(update={"sha256": document["sha256"]})


def load_manifest(folder: Path, *, verify: bool = True, expect_sha256: str | None = None) -> Manifest:
    """Read `manifest.json` and check that the artifact is whole.

    Args:
        folder: the artifact's folder.
        verify: also read every file, see `check_contents`. Presence and size of the files are always checked.
        expect_sha256: the manifest's `sha256` as the artifact's maker told it, which guards against a forged artifact.

    Raises:
        InputError: there is no artifact at `folder`, or it is not the one that `expect_sha256` names.
        KdcError: the manifest or a file is damaged, missing, or of a schema that this version does not know.
    """
    path = folder / MANIFEST_NAME
    try:
        with _opened(path) as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            "there is no artifact here",
            given=folder,
            remedy=f"give the folder that holds {MANIFEST_NAME}, e.g. `runs/sst2/artifact`",
        ) from error
    except OSError as error:
        raise _damaged("the manifest cannot be read", f"{path}: {error}") from error
    manifest = parse_manifest(content, path, expect_sha256=expect_sha256)
    with _reading():
        _check_sizes(folder, manifest)
    if verify:
        check_contents(folder, manifest)
    return manifest


def check_contents(folder: Path, manifest: Manifest) -> None:
    """Compare the SHA-256 of all files with the manifest's, and refuse an ONNX file whose weights lie elsewhere.

    Raises:
        KdcError: a file is damaged, or cannot be read.
    """
    for name in manifest.files:
        with _reading(), _opened(folder / name) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else nullcontext(b"") as content:
                _check(content, digest, manifest, folder / name)


def read_contents(path: Path, manifest: Manifest, *, verify: bool = True) -> bytes:
    """Read a file of the artifact, checked as by `check_contents` if `verify` says so. The bytes that are checked are
    returned, whatever becomes of the file meanwhile.

    Raises:
        KdcError: the file is damaged, or cannot be read.
    """
    with _reading(), _opened(path) as file:
        content = file.read(manifest.files[path.name].size + 1)  # no more, however large it has become
    if verify:
        _check(content, hashlib.sha256(content).hexdigest(), manifest, path)
    return content


def _check(content: bytes | mmap.mmap, digest: str, manifest: Manifest, path: Path) -> None:
    if digest != (expected := manifest.files[path.name].sha256):
        raise _damaged("a file of the artifact was changed", f"{path}: SHA-256 {digest}, the manifest says {expected}")
    if any(path.name in variant.graphs for variant in manifest.variants.values()) and not is_self_contained(content):
        raise KdcError(
            "an ONNX file of the artifact keeps weights in another file, which no hash covers, or is no ONNX file",
            given=path,
            remedy="save it with its weights inside, then make the manifest again",
        )


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    """A file of the artifact to read. A named pipe is refused: `open` would wait for somebody to write to it."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise _damaged("a file of the artifact is no regular file", path)
        yield file


@contextmanager
def _reading() -> Iterator[None]:
    """Turn errors of the file system within the block into an error of kdc."""
    try:
        yield
    except OSError as error:
        raise KdcError(
            "a file of the artifact cannot be read",
            given=f"{error.filename}: {error.strerror}",
            remedy="see that this user may read it: `chmod -R a+rX` of the artifact",
        ) from error


def parse_manifest(content: bytes, path: object, *, expect_sha256: str | None = None) -> Manifest:
    """Parse the bytes of a manifest; `path` says in messages where they come from. Its files are not looked at.

    Raises:
        InputError: the manifest is not the one that `expect_sha256` names.
        KdcError: it is too large, damaged, or of a schema that this version does not know.
    """
    if len(content) > MAX_MANIFEST_BYTES:
        raise _damaged("the manifest is too large", f"{path}: over {MAX_MANIFEST_BYTES} bytes")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged("the manifest is not valid JSON", f"{path}: {error}") from error
    if not isinstance(document, dict):
        raise _damaged("the manifest is not a JSON object", path)
    if document.get("schema_version") != SCHEMA_VERSION:
        raise KdcError(
            "the manifest has a schema version that this kdc does not know",
            given=f"{path}: schema_version {document.get('schema_version')!r}, known: {SCHEMA_VERSION}",
            remedy="install the kdc that made the artifact, or make the artifact again with this one",
        )
    if document.get("sha256") != _canonical_sha256(document):
        raise _damaged("the manifest does not match its own SHA-256: it was changed", path)
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5])
        raise _damaged("the manifest does not follow its schema", f"{path}: {problems}") from error
    if expect_sha256 is not None and manifest.sha256 != expect_sha256.strip().lower():
        raise InputError(
            "this is not the artifact that was expected",
            given=f"manifest SHA-256 {manifest.sha256}, expected {expect_sha256}",
            remedy="fetch the artifact again, or pass the SHA-256 that `kdc inspect` prints for a copy that you trust",
        )
    return manifest


def _damaged(what: str, given: object) -> KdcError:
    return KdcError(
        what, given=given, remedy="make the artifact again with `kdc compress`, or copy it again from where it came"
    )


def _canonical_sha256(document: dict[str, Any]) -> str:
    """SHA-256 of a manifest's JSON document without its own `sha256`: keys sorted, no spaces."""
    rest = {key: value for key, value in document.items() if key != "sha256"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _check_sizes(folder: Path, manifest: Manifest) -> None:
    root = folder.resolve()
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise _damaged("a file of the artifact is missing", path)
        if not path.resolve().is_relative_to(root):
            remedy = "replace it by a copy of the file"
            raise KdcError("a file of the artifact is a link that leaves it", given=path, remedy=remedy)
        if (size := path.stat().st_size) != expected.size:
            given = f"{path}: {size} bytes, the manifest says {expected.size}"
            raise _damaged("a file of the artifact has the wrong size", given)
