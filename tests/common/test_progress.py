"""Progress: bars on a terminal alone, and lines on stderr."""

import re
import subprocess
import sys
import time

import pytest

from kdc.common.progress import Meter, Reporter


def show_all(quiet: bool = False) -> None:
    reporter = Reporter(quiet=quiet)
    reporter.started("teacher", "new")
    reporter.progress(1, 2)
    reporter.finished("teacher", 1.25, "tuning set accuracy 90.1")
    with Meter() as meter:
        meter.start("pull x", 100)
        meter.advance(50)
    with Meter() as counter:
        counter.start("rows", 100)
        counter.update(50, 3, 1.5)


def test_without_a_terminal_there_are_only_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show_all()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "teacher: starts (new)\nteacher: done in 1.2 s: tuning set accuracy 90.1\n"


def test_without_a_terminal_a_line_now_and_then_says_where_the_stage_is(capsys: pytest.CaptureFixture[str]) -> None:
    # A log that is silent for ten minutes looks like a run that hangs.
    reporter = Reporter(beat_s=0.2)
    reporter.started("teacher", "new")
    for step in range(1, 9):
        time.sleep(0.1)
        reporter.progress(step, 80, rows=32, loss=0.5 if step == 3 else None)
    reporter.finished("teacher", 0.8, "")
    time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("teacher: done")  # and none after it
    assert 2 <= len(lines) - 2 <= 4
    found = re.fullmatch(r"teacher: 1 s, step (\d) of 80, (\d+) rows/s, loss 0.500, about 0:00:(\d+) left", lines[-2])
    assert found is not None, lines
    step, rows, left = map(int, found.groups())
    assert 5 <= step <= 8
    assert rows == pytest.approx(320, rel=0.3)
    assert left == pytest.approx((80 - step) / 10, rel=0.3)


def test_a_stage_that_tells_nothing_is_seen_to_live(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(beat_s=0.1) as reporter:
        reporter.started("evaluate", "new")
        time.sleep(0.25)
    assert "evaluate: 0 s\n" in capsys.readouterr().err


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
