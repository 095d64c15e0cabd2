"""Manifests that released versions wrote are read for at least two minor versions more (docs/reference/support.md)."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from live import ROOT

from kdc import __version__
from kdc.artifact.folder import load_manifest

STORED = sorted((ROOT / "tests" / "artifact" / "manifests").glob("*.json"))


def minor(version: str) -> int:
    return int(version.split(".")[1])


def includes(loaded: Any, stored: Any) -> bool:
    """Whether all that was stored is there; a newer version may have added fields."""
    if isinstance(stored, dict):
        return all(key in loaded and includes(loaded[key], value) for key, value in stored.items())
    if isinstance(stored, list):
        return len(loaded) == len(stored) and all(map(includes, loaded, stored))
    return bool(loaded == stored)


@pytest.mark.parametrize("file", STORED, ids=lambda file: file.stem)
def test_a_manifest_of_an_earlier_version_says_what_it_said(file: Path, tmp_path: Path) -> None:
    stored = json.loads(file.read_text(encoding="utf-8"))
    (tmp_path / "manifest.json").write_bytes(file.read_bytes())
    for name, info in stored["files"].items():
        with (tmp_path / name).open("wb") as stream:
            stream.truncate(info["size"])  # no weights: what is stored is the manifest alone
    loaded = load_manifest(tmp_path, verify=False, expect_sha256=stored["sha256"])
    assert includes(json.loads(loaded.model_dump_json()), stored)


def test_this_version_and_two_minor_versions_before_it_are_stored() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - ", changelog, re.MULTILINE)
    wanted = {minor(version) for version in [__version__, *released] if minor(version) >= minor(__version__) - 2}
    assert wanted <= {minor(file.stem) for file in STORED}
