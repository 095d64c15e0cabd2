"""What transfers are tested with: artifacts with a file of some size, comparisons, and a count of what S3 was asked."""

from __future__ import annotations

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
from kdc.artifact.manifest import Manifest

BIG, BIG_BYTES = "evaluation.npz", 2_000_003  # more than two requests' worth, as the fixtures set them


def make_artifact(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A tiny artifact with a big file beside its models."""
    manifest = load_manifest(bag_models.write_artifact(folder))
    (folder / BIG).write_bytes(np.random.default_rng(seed).bytes(BIG_BYTES))
    files = manifest.files | describe_files(folder, [BIG])
    write_manifest(folder, manifest.model_copy(update={"files": files, **changes}))
    return folder


def forge(folder: Path, **changes: Any) -> Manifest:
    """Rewrite a manifest with a right SHA-256 of its own, as a hostile store can."""
    from kdc.artifact.folder import canonical_sha256

    path = folder / "manifest.json"
    document = json.loads(path.read_bytes()) | changes
    document["sha256"] = canonical_sha256(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    return document


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes by name; BentoML's own file does not count."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "model.yaml"}


def hidden(folder: Path) -> list[str]:
    """What a transfer left beside its target."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def kdc(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment}
    )


def command(*arguments: str) -> list[str]:
    """What starts it."""
    return [sys.executable, "-m", "kdc", *arguments]


@dataclass
class Traffic:
    """What an S3 client asked of objects: method, name, first byte."""

    asked: list[tuple[str, str, int]] = field(default_factory=list)

    def of(self, method: str) -> list[tuple[str, int]]:
        """Name and first byte of all calls of a method."""
        return [(name, first) for each, name, first in self.asked if each == method]
