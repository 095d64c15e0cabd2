"""The record of an artifact's audits: shared by workers, kept across restarts, never damaged by kdc."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from filelock import FileLock

from kdc.common.errors import InputError
from kdc.serving.upstream import record as module
from kdc.serving.upstream.record import AuditRecord
from kdc.serving.upstream.sequence import EPOCH

SHA256 = "ab" * 32
# Without syncs: two thousand would take the disk's time, and say nothing of workers.
WORKER = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from kdc.serving.upstream.record import AuditRecord
os.fsync = lambda descriptor: None
record = AuditRecord(Path(sys.argv[1]), sys.argv[2], 0.02)
with ThreadPoolExecutor(2) as pool:
    list(pool.map(lambda number: record.add(1, number % 2), range(1000)))
"""
KILLED = """
import os, signal, sys
from pathlib import Path
from kdc.serving.upstream.record import AuditRecord
record = AuditRecord(Path(sys.argv[1]), sys.argv[2], 0.02)
record.add(10, 1)
replace = os.replace
def die(*paths):
    if sys.argv[3] == "replaced":
        replace(*paths)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, "fsync" if sys.argv[3] == "synced" else "replace", die)
record.add(1, 1)
"""


def file_of(folder: Path) -> Path:
    return folder / f"{SHA256}.json"


def python(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-P", "-c", script, *map(str, arguments)])


def test_counts_and_their_interval(tmp_path: Path) -> None:
    record = AuditRecord(tmp_path / "new" / "folder", SHA256, 0.02)
    empty = record.read()
    assert (empty.audits, empty.estimate, empty.low, empty.high, empty.budget_left) == (0, 0, 0, 1, 0.02)

    record.add(1000, 4)
    standing = record.add(1000, 6)

    assert (standing.audits, standing.differing, standing.stopped) == (2000, 10, None)
    assert standing.low < standing.estimate == 0.005 < standing.high < 0.02
    assert standing.budget_left == pytest.approx(0.015)
    assert record.read() == standing


def test_it_stops_when_the_lower_end_exceeds_the_budget_and_stays_stopped(tmp_path: Path) -> None:
    record, started = AuditRecord(tmp_path, SHA256, 0.02), datetime.now(UTC)
    standing = record.add(1, 0)
    while standing.stopped is None:
        assert standing.low <= 0.02
        standing = record.add(1, 1)
    assert standing.low > 0.02
    assert abs(standing.stopped - started) < timedelta(minutes=1)

    later = AuditRecord(tmp_path, SHA256, 0.02).add(100_000, 0)

    assert later.high < 0.02
    assert later.stopped == standing.stopped
    assert json.loads(file_of(tmp_path).read_text())["stopped"] == f"{standing.stopped:%Y-%m-%dT%H:%M:%SZ}"


def test_a_good_past_does_not_hide_that_it_differs_now(tmp_path: Path) -> None:
    """After 20,000 good audits at half the budget, four times the budget stops it within an epoch or two, long before
    the share of all audits passes the budget. Epochs are counted by themselves."""
    record = AuditRecord(tmp_path, SHA256, 0.02)
    for _ in range(10):
        standing = record.add(EPOCH, EPOCH // 100)
    assert (standing.epoch, standing.newest, standing.stopped) == (10, (20, 2000), None)
    made = 0
    while standing.stopped is None:
        standing = record.add(25, 2)
        made += 25
    assert standing.estimate < 0.02
    assert standing.newest[1] == made <= EPOCH
    assert standing.epoch == 11


def test_without_a_budget_it_never_stops(tmp_path: Path) -> None:
    standing = AuditRecord(tmp_path, SHA256, None).add(1000, 1000)
    assert (standing.stopped, standing.budget_left) == (None, None)
    assert standing.low > 0.5


def test_another_budget_judges_the_same_counts(tmp_path: Path) -> None:
    assert AuditRecord(tmp_path, SHA256, 0.5).add(1000, 100).stopped is None
    stricter = AuditRecord(tmp_path, SHA256, 0.02)
    assert stricter.read().budget == 0.02
    assert stricter.check().stopped is not None


def test_artifacts_have_records_of_their_own(tmp_path: Path) -> None:
    AuditRecord(tmp_path, SHA256, 0.02).add(1000, 1000)
    assert AuditRecord(tmp_path, "cd" * 32, 0.02).check().audits == 0


def test_resuming_forgets_the_counts_and_the_stop(tmp_path: Path) -> None:
    worker = AuditRecord(tmp_path, SHA256, 0.02)
    assert worker.add(100, 100).stopped is not None
    AuditRecord(tmp_path, SHA256, None).resume()
    assert (worker.read().audits, worker.read().stopped, worker.read().budget) == (0, None, 0.02)


DAMAGED = {
    "half": '{"audits":10,"diff',
    "empty": "",
    "another object": "{}",
    "no stop": '{"audits":10,"differing":1,"budget":0.02}',
    "a list": "[10, 1, null, 0.02]",
    "a count as text": '{"audits":"10","differing":1,"stopped":null,"budget":0.02}',
    "half an audit": '{"audits":10.5,"differing":1,"stopped":null,"budget":0.02}',
    "a negative count": '{"audits":10,"differing":-1,"stopped":null,"budget":0.02}',
    "a count beyond all": '{"audits":1e300,"differing":1,"stopped":null,"budget":0.02}',
    "more than were made": '{"audits":10,"differing":11,"stopped":null,"budget":0.02}',
    "no time": '{"audits":10,"differing":1,"stopped":"yes","budget":0.02}',
    "no UTF-8": b'{"audits":10,"differing":1,"stopped":"\xff","budget":0.02}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_is_refused_and_kept(content: str | bytes, tmp_path: Path) -> None:
    before = content.encode() if isinstance(content, str) else content
    file_of(tmp_path).write_bytes(before)
    record = AuditRecord(tmp_path, SHA256, 0.02)
    for method in (record.check, record.read, lambda: record.add(1, 0)):
        with pytest.raises(InputError, match="damaged") as refused:
            method()
        assert str(file_of(tmp_path)) in str(refused.value)
        assert "kdc serve --resume" in refused.value.remedy
    assert file_of(tmp_path).read_bytes() == before

    record.resume()
    assert record.check().audits == 0


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot use the record") as refused:
            AuditRecord(folder, SHA256, 0.02).check()
        assert "KDC_STATE_DIR" in refused.value.remedy


def test_a_worker_that_hangs_does_not_hang_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = AuditRecord(tmp_path, SHA256, 0.02)
    record.check()
    monkeypatch.setattr(module, "_WAIT_S", 0.05)
    with FileLock(tmp_path / f"{SHA256}.lock"), pytest.raises(InputError, match="lock"):
        record.add(1, 0)
    assert record.add(1, 0).audits == 1


def test_workers_lose_no_audit(tmp_path: Path) -> None:
    workers = [python(WORKER, tmp_path, SHA256) for _ in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    standing = AuditRecord(tmp_path, SHA256, 0.02).read()
    assert (standing.audits, standing.differing) == (2000, 1000)


@pytest.mark.parametrize(("moment", "audits"), [("synced", 10), ("renamed", 10), ("replaced", 11)])
def test_a_killed_worker_loses_at_most_its_last_audit(moment: str, audits: int, tmp_path: Path) -> None:
    assert python(KILLED, tmp_path, SHA256, moment).wait(timeout=60) == -signal.SIGKILL
    record = AuditRecord(tmp_path, SHA256, 0.02)
    assert record.read().audits == audits
    assert record.add(1, 0).audits == audits + 1
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".lock"}


def rewrite(file: Path, audits: int, seconds: float) -> None:
    """Change the counts in place, and set the file's time."""
    file.write_text(f'{{"audits":{audits},"differing":1,"stopped":null,"budget":0.02}}')
    os.utime(file, (seconds, seconds))


def test_an_unchanged_file_is_read_once(tmp_path: Path) -> None:
    record = AuditRecord(tmp_path, SHA256, 0.02)
    rewrite(file_of(tmp_path), 10, 1e9)
    assert record.read().audits == 10
    rewrite(file_of(tmp_path), 20, 1e9)
    assert record.read().audits == 10  # not looked at: its time, size and inode are the same
    AuditRecord(tmp_path, SHA256, 0.02).add(1, 0)
    assert record.read().audits == 21


def test_a_change_within_a_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    record = AuditRecord(tmp_path, SHA256, 0.02)
    now = time.time()
    rewrite(file_of(tmp_path), 20, now)
    assert record.read().audits == 20
    rewrite(file_of(tmp_path), 30, now)
    assert record.read().audits == 30
