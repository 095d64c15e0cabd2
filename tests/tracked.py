"""Copies of what git tracks, so that a test may change, build or install the repository without touching it."""

import shutil
import subprocess
from pathlib import Path

import pytest
from live import ROOT


def tracked() -> list[Path]:
    """The files that git tracks and that are there, relative to the repository; the test is skipped without git."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git and a clone of the repository")
    return [Path(name) for name in sorted(filter(None, listed.split("\0"))) if (ROOT / name).exists()]


def copy_tracked(target: Path) -> Path:
    """Copy the tracked files, as they are in the working tree, to a folder that is not there yet."""
    for name in tracked():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    return target
