"""`make check` finds what it is there to find: errors are put into a copy of the repository and have to be reported."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from live import ROOT
from tracked import copy_tracked

PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
ROOMS = sorted({name.split(".")[1] for name in PACKAGES if name != "kdc"} | {"cli"})
WRONG = """
from kdc.common.errors import KdcError as _KdcError

_number: int = "no number"
_KdcError("what", no_such_argument=1)
"""


def check(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", *command], cwd=folder, capture_output=True, text=True, check=False
    )


def test_ruff_refuses_our_rooms_by_their_bare_names(tmp_path: Path) -> None:
    for room in ROOMS:
        (tmp_path / f"of_{room}.py").write_text(f"import {room}\nfrom {room} import something\n", encoding="utf-8")
    options = ["--config", str(ROOT / "pyproject.toml"), "--select", "TID251", "--output-format", "json", "."]
    refused = json.loads(check(tmp_path, "ruff", "check", *options).stdout)
    assert sorted(Path(each["filename"]).stem for each in refused) == sorted([f"of_{room}" for room in ROOMS] * 2)


@pytest.mark.slow  # mypy reads the whole tree, without a cache
def test_mypy_finds_wrong_types(tmp_path: Path) -> None:
    """Where mypy does not find our package it takes all of it for Any, and says nothing at all."""
    copy = copy_tracked(tmp_path / "copy")
    (copy / ".typecheck").mkdir()
    (copy / ".typecheck" / "kdc").symlink_to("..")
    last_lines = {}
    for name in ("pipeline/run.py", "serving/service.py", "tests/test_cli.py"):
        lines = (copy / name).read_text(encoding="utf-8") + WRONG
        (copy / name).write_text(lines, encoding="utf-8")
        last_lines[name] = lines.count("\n")
    reported = check(copy, "mypy").stdout.replace(".typecheck/kdc/", "")
    for name, last in last_lines.items():
        assert f"{name}:{last - 1}: error: Incompatible types in assignment" in reported
        assert f'{name}:{last}: error: Unexpected keyword argument "no_such_argument"' in reported
