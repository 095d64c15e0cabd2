"""`benchmarks/budgets.py` counts what is there, and fails if there is more than pyproject.toml allows."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from live import ROOT

FIRST = """
import pipeline

def one(run: Run) -> None: ...
def two(*, run: "Run | None" = None, more: int = 1) -> Run: ...
def three(run: pipeline.Run, config: list[Config]) -> None:
    async def inner(*runs: Run) -> None: ...
def four(settings: RunSettings, make: Callable[[], int]) -> Run: ...
"""
COUNTED = {"room": 8, "room/inner": 301, "all rooms": 309, "Run": 4, "Config": 1, "long": 1}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One with two rooms of known size, and the script."""
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "budgets.py", tmp_path / "benchmarks")
    (tmp_path / "room" / "inner").mkdir(parents=True)
    (tmp_path / "room" / "first.py").write_text(FIRST, encoding="utf-8")
    (tmp_path / "room" / "inner" / "long.py").write_text("# a line\n" * 301, encoding="utf-8")
    (tmp_path / "room" / "page.html").write_text("no code\n" * 400, encoding="utf-8")
    return tmp_path


def check(repository: Path, **changes: int | None) -> subprocess.CompletedProcess[str]:
    """The script's answer where exactly what is there is allowed, but for the changes."""
    names = {"Run": "functions that take Run", "Config": "functions that take Config", "long": "files over 300 lines"}
    budgets = {names.get(what, what): count for what, count in (COUNTED | changes).items() if count is not None}
    lines = "\n".join(f'"{what}" = {count}' for what, count in budgets.items())
    packages = '[tool.setuptools]\npackages = ["kdc.room", "kdc.room.inner"]\n'
    (repository / "pyproject.toml").write_text(f"{packages}[tool.kdc.budgets]\n{lines}\n", encoding="utf-8")
    command = [sys.executable, "benchmarks/budgets.py"]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)


def test_what_is_there_is_counted(repository: Path) -> None:
    done = check(repository)
    assert (done.returncode, done.stderr) == (0, "")
    counted = [line.rpartition(" of ")[0].split() for line in done.stdout.splitlines()]
    assert [int(line[-1]) for line in counted] == list(COUNTED.values())


@pytest.mark.parametrize("what", COUNTED)
def test_more_than_allowed_fails(repository: Path, what: str) -> None:
    done = check(repository, **{what: COUNTED[what] - 1})
    assert done.returncode == 1
    assert f"{COUNTED[what]}, of {COUNTED[what] - 1}" in done.stderr


@pytest.mark.parametrize("change", [{"room": None}, {"a room of before": 10}])
def test_each_room_has_a_budget_and_each_budget_a_room(repository: Path, change: dict[str, int | None]) -> None:
    done = check(repository, **change)
    assert done.returncode == 1
    assert done.stderr.count("budget") == 2
