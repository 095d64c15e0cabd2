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
    """For `Manifest.files`."""
    return {name: FileInfo(sha256=sha256_of(folder / name), size=(folder / name).stat().st_size) for name in names}


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write `manifest.json` atomically, after all other files.

    Raises:
        KdcError: a file is missing or differs, or the manifest is too large.
    """
    document = manifest.model_dump(mode="json")
    document["sha256"] = _canonical_sha256(document)
    content = (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    written = parse_manifest(content, folder / MANIFEST_NAME)
    _check_sizes(folder, manifest)
    check_contents(folder, manifest)
    write_whole(folder / MANIFEST_NAME, content)
    (folder / MANIFEST_NAME).chmod(0o644)  # for servers of other users
    return written


def load_manifest(folder: Path, *, verify: bool = True, expect_sha256: str | None = None) -> Manifest:
    """Read `manifest.json` and check the artifact.

    Args:
        verify: check contents, not only presence and size.
        expect_sha256: the manifest's `sha256` from its maker, against forgery.

    Raises:
        InputError: the artifact is missing, or not the expected one.
        KdcError: something is damaged or missing, or the schema is unknown.
    """
    path = folder / MANIFEST_NAME
    try:
        with opened(path) as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        remedy = f"give the folder that holds {MANIFEST_NAME}, e.g. `runs/sst2/artifact`"
        if (folder / "kdc" / MANIFEST_NAME).exists():
            remedy = f"this is an artifact exported for the hub: `kdc pull {folder} artifact`, and give that folder"
        raise InputError("there is no artifact here", given=folder, remedy=remedy) from error
    except OSError as error:
        raise _damaged("the manifest cannot be read", f"{path}: {error}") from error
    manifest = parse_manifest(content, path, expect_sha256=expect_sha256)
    with _reading():
        _check_sizes(folder, manifest)
    if verify:
        check_contents(folder, manifest)
    return manifest


def check_contents(folder: Path, manifest: Manifest) -> None:
    """Check hashes, and that ONNX files hold their weights."""
    for name in manifest.files:
        with _reading(), opened(folder / name) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else nullcontext(b"") as content:
                _check(content, digest, manifest, folder / name)


def read_contents(path: Path, manifest: Manifest, *, verify: bool = True) -> bytes:
    """Read a file once, and check these bytes."""
    with _reading(), opened(path) as file:
        content = file.read(manifest.files[path.name].size + 1)  # a file that has grown must not fill memory
    if verify:
        _check(content, hashlib.sha256(content).hexdigest(), manifest, path)
    return content


def _check(content: bytes | mmap.mmap, digest: str, manifest: Manifest, path: Path) -> None:
    if digest != (expected := manifest.files[path.name].sha256):
        raise _damaged("a file of the artifact was changed", f"{path}: SHA-256 {digest}, the manifest says {expected}")
    if any(path.name in variant.graphs for variant in manifest.variants.values()) and not is_self_contained(content):
        what = "an ONNX file of the artifact keeps weights in another file, which no hash covers, or is no ONNX file"
        raise KdcError(what, given=path, remedy="save it with its weights inside, then make the manifest again")


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file; a named pipe would wait for a writer."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise _damaged("a file of the artifact is no regular file", path)
        yield file


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        given = f"{error.filename}: {error.strerror}"
        remedy = "see that this user may read it: `chmod -R a+rX` of the artifact"
        raise KdcError("a file of the artifact cannot be read", given=given, remedy=remedy) from error


def parse_manifest(content: bytes, path: object, *, expect_sha256: str | None = None) -> Manifest:
    """`path` is for messages. Raises like `load_manifest`."""
    if len(content) > MAX_MANIFEST_BYTES:
        raise _damaged("the manifest is too large", f"{path}: over {MAX_MANIFEST_BYTES} bytes")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged("the manifest is not valid JSON", f"{path}: {error}") from error
    if not isinstance(document, dict):
        raise _damaged("the manifest is not a JSON object", path)
    if document.get("schema_version") != SCHEMA_VERSION:
        given = f"{path}: schema_version {document.get('schema_version')!r}, known: {SCHEMA_VERSION}"
        remedy = "install the kdc that made the artifact, or make the artifact again with this one"
        raise KdcError("this kdc does not know the manifest's schema version", given=given, remedy=remedy)
    if document.get("sha256") != _canonical_sha256(document):
        raise _damaged("the manifest does not match its own SHA-256: it was changed", path)
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5])
        raise _damaged("the manifest does not follow its schema", f"{path}: {problems}") from error
    if expect_sha256 is not None and manifest.sha256 != expect_sha256.strip().lower():
        given = f"manifest SHA-256 {manifest.sha256}, expected {expect_sha256}"
        remedy = "fetch it again, or if you trust this copy, sign it, or pass the SHA-256 that `kdc inspect` prints"
        raise InputError("this is not the artifact that was expected", given=given, remedy=remedy)
    return manifest


def _damaged(what: str, given: object) -> KdcError:
    return KdcError(
        what, given=given, remedy="make the artifact again with `kdc compress`, or copy it again from its source"
    )


def _canonical_sha256(document: dict[str, Any]) -> str:
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
            raise KdcError("a file of the artifact is a link to elsewhere", given=path, remedy=remedy)
        if (size := path.stat().st_size) != expected.size:
            given = f"{path}: {size} bytes, the manifest says {expected.size}"
            raise _damaged("a file of the artifact has the wrong size", given)
