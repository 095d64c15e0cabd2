"""The workflows of GitHub: what may publish, what is tested before, and that the linter of `make check` sees faults."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from live import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def release() -> dict[str, Any]:
    """Jobs of the release by name."""
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    jobs: dict[str, Any] = yaml.safe_load(text)["jobs"]
    return jobs


def zizmor(folder: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("zizmor")
    if not program.exists():
        pytest.skip("zizmor is not installed")
    return subprocess.run([program, "--offline", folder], capture_output=True, text=True, check=False)


def test_a_person_and_every_test_stand_before_what_publishes(release: dict[str, Any]) -> None:
    publishing = {name for name, job in release.items() if job["permissions"].get("id-token") == "write"}
    assert publishing == {"publish"}
    assert release["publish"]["environment"] == {"name": "pypi"}
    assert set(release["publish"]["needs"]) == {"build", "test"}
    assert not any(step.get("run") for step in release["publish"]["steps"])  # no code of ours beside the token


def test_the_wheel_is_tested_on_every_python_that_is_promised(release: dict[str, Any]) -> None:
    promised = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", name)]
    assert release["test"]["strategy"]["matrix"]["python"] == promised


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_the_linter_finds_nothing_and_would_find_an_action_that_is_not_pinned(workflow: Path, tmp_path: Path) -> None:
    copy = tmp_path / ".github" / "workflows" / workflow.name
    copy.parent.mkdir(parents=True)
    shutil.copy(workflow, copy)
    assert zizmor(tmp_path).returncode == 0
    text = copy.read_text(encoding="utf-8")
    copy.write_text(re.sub(r"(setup-python|pypi-publish)@\w+ # v[\d.]+", r"\1@main", text), encoding="utf-8")
    assert "unpinned-uses" in zizmor(tmp_path).stdout
