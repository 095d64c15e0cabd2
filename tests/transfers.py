"""Helpers for tests of transfers: artifacts with a file of some size, comparisons, and a count of S3's requests."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bag_models
import numpy as np

from kdc.artifact.folder import describe_files, load_manifest, write_manifest

BIG, BIG_BYTES = "evaluation.npz", 2_000_003  # more than two requests' worth, as the fixtures set them


def make_artifact(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A tiny artifact with a big file beside its models."""
    manifest = load_manifest(bag_models.write_artifact(folder))
    (folder / BIG).write_bytes(np.random.default_rng(seed).bytes(BIG_BYTES))
    files = manifest.files | describe_files(folder, [BIG])
    write_manifest(folder, manifest.model_copy(update={"files": files, **changes}))
    return folder


def seal(document: dict[str, Any]) -> dict[str, Any]:
    """A manifest's document with the SHA-256 that belongs to it, as anybody who knows the format can compute it."""
    rest = {key: value for key, value in document.items() if key != "sha256"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return rest | {"sha256": hashlib.sha256(canonical.encode()).hexdigest()}


def forge(folder: Path, **changes: Any) -> dict[str, Any]:
    """Change a manifest and seal it again, as a hostile store can."""
    path = folder / "manifest.json"
    document = seal(json.loads(path.read_bytes()) | changes)
    path.write_text(json.dumps(document), encoding="utf-8")
    return document


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of each file by its name, without BentoML's own file."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "model.yaml"}


def hidden(folder: Path) -> list[str]:
    """The hidden names that a transfer left beside its target."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def kdc(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `kdc` in a process of its own."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment}
    )


def command(*arguments: str) -> list[str]:
    """The command line that starts `kdc`."""
    return [sys.executable, "-m", "kdc", *arguments]


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


@dataclass
class Traffic:
    """What an S3 client asked of objects: method, name, first byte."""

    asked: list[tuple[str, str, int]] = field(default_factory=list)

    def of(self, method: str) -> list[tuple[str, int]]:
        """Name and first byte of all calls of a method."""
        return [(name, first) for each, name, first in self.asked if each == method]
