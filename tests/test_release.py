"""Version, changelog and tag agree. The release workflow runs this file alone: it needs pytest and nothing else."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RELEASED = (
    "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2027-01-31\n\n- New.\n\n## [0.1.0] - 2026-12-31\n\n- First.\n"
)
AHEAD = "# Changelog\n\n## [Unreleased]\n\n0.2.0 will have:\n\n- New.\n\n## [0.1.0] - 2026-12-31\n\n- First.\n"


def disagreements(version: str, changelog: str, tag: str | None) -> list[str]:
    """What does not fit; `tag` is None for a commit that is no release."""
    dated = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", changelog, re.MULTILINE)
    newest = dated[0] if dated else None
    coming = changelog.partition("## [Unreleased]\n")[2].partition("\n## [")[0]
    if tag is None:
        fits = newest == version or version in re.findall(r"\d+\.\d+\.\d+", coming)
        return [] if fits else [f"the changelog does not speak of {version}"]
    found = [] if tag == f"v{version}" else [f"the tag is {tag}, the version {version}"]
    found += [] if newest == version else [f"the changelog's newest dated version is {newest}, not {version}"]
    return found + (["there are unreleased changes"] if coming.strip() else [])


def tag_of_this_commit() -> str | None:
    """As the workflow gives it, or as git has it."""
    if named := os.environ.get("KDC_TAG"):
        return named
    command = ["git", "describe", "--tags", "--exact-match", "--match", "v*"]
    try:
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return None
    return told or None


def test_version_changelog_and_tag_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    told = re.search(r'^__version__ = "(.+)"$', (ROOT / "common" / "version.py").read_text(encoding="utf-8"), re.M)
    assert told is not None
    assert told[1] == project["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert disagreements(project["version"], changelog, tag_of_this_commit()) == []


@pytest.mark.parametrize(
    ("version", "changelog", "tag", "count"),
    [
        ("0.2.0", RELEASED, "v0.2.0", 0),
        ("0.2.0", RELEASED, None, 0),
        ("0.2.0", AHEAD, None, 0),
        ("0.3.0", RELEASED, None, 1),
        ("0.2.0", RELEASED, "v0.2.1", 1),
        ("0.2.0", AHEAD, "v0.2.0", 2),
    ],
)
def test_what_does_not_agree_is_found(version: str, changelog: str, tag: str | None, count: int) -> None:
    assert len(disagreements(version, changelog, tag)) == count
