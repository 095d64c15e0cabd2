"""Progress: bars on a terminal alone, and lines on stderr."""

import subprocess
import sys

import pytest

from kdc.common.progress import Meter, Reporter, RowCounter


def show_all(quiet: bool = False) -> None:
    reporter = Reporter(quiet=quiet)
    reporter.started("teacher", "new")
    reporter.progress(1, 2)
    reporter.finished("teacher", 1.25, "tuning slice accuracy 90.1")
    with Meter() as meter:
        meter.start("pull x", 100)
        meter.advance(50)
    with RowCounter() as counter:
        counter.start(100)
        counter.update(50, 3, 1.5)


def test_without_a_terminal_there_are_only_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show_all()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "teacher: starts (new)\nteacher: done in 1.2 s: tuning slice accuracy 90.1\n"


def test_on_a_terminal_bars_are_drawn_and_taken_away(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    monkeypatch.setenv("TERM", "xterm")
    show_all()
    printed = capsys.readouterr()
    assert printed.out == ""
    for text in ("teacher", "1/2", "pull x", "3 rows"):
        assert text in printed.err


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(quiet=True)
    reporter.started("teacher", "new")
    reporter.skipped("student")
    assert capsys.readouterr().err == ""


def test_importing_what_all_rooms_use_loads_nothing_heavy() -> None:
    code = (
        "import sys, kdc.common.errors, kdc.common.progress, kdc.common.places, kdc.common.files\n"
        "print(sorted({'rich', 'pydantic', 'numpy', 'fsspec', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
