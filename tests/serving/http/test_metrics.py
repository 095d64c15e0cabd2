"""Metrics on a disk that is full: the service goes on without them."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from live import ROOT

from kdc.serving.http import metrics

# Counts many series, of which the last ones need a file that grows, after the disk has become full.
FULL = """
import errno, os, logging
logging.basicConfig(format="%(message)s")
from kdc.serving.http.metrics import Metrics
metrics = Metrics()
metrics.answered("/predict", 200, 0.1)

def refuse(*args):
    raise OSError(errno.ENOSPC, "No space left on device")

os.posix_fallocate = refuse
for number in range(3000):
    metrics.answered(f"/route{number}", 200, 0.1)
metrics.answered("/predict", 200, 0.1)
assert metrics.incomplete
print(metrics.exposition().decode())
"""


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", script],
        env={"PROMETHEUS_MULTIPROC_DIR": str(folder), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_files_have_all_their_pages(tmp_path: Path) -> None:
    # A page that is not there yet is a SIGBUS at its first write on a full disk: each new worker died of it.
    done = run("from kdc.serving.http.metrics import Metrics; Metrics().answered('/', 200, 0.1)", tmp_path)
    assert done.returncode == 0, done.stderr
    files = list(tmp_path.glob("*.db"))
    assert len(files) >= 3
    for file in files:
        assert file.stat().st_blocks * 512 >= file.stat().st_size > 0, file


def test_a_disk_that_is_full_ends_no_request(tmp_path: Path) -> None:
    done = run(FULL, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the metrics are incomplete from now on") == 1
    assert 'kdc_requests_total{route="/predict",status="200"} 2.0' in done.stdout


def test_a_worker_that_starts_on_a_full_disk_counts_in_memory(tmp_path: Path) -> None:
    head, refusal = FULL.split("from kdc")[0], FULL[FULL.index("def refuse") : FULL.index("for number")]
    after = "from kdc" + FULL.split("from kdc")[1].split("def refuse")[0]
    done = run(head + refusal + after + "print(metrics.exposition().decode())", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "metrics are of this worker alone" in done.stderr
    assert 'kdc_requests_total{route="/predict",status="200"} 1.0' in done.stdout


def test_metrics_are_told_though_the_first_file_of_a_kind_could_not_be_made(tmp_path: Path) -> None:
    # The bug to catch: an empty file was left, and `/metrics` answered 500 for as long as the folder was there.
    early = FULL.replace('metrics.answered("/predict", 200, 0.1)\n\ndef', "\ndef", 1).replace("range(3000)", "range(3)")
    done = run(early, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "kdc_refused_connections_total 0.0" in done.stdout
    assert all(file.stat().st_size for file in tmp_path.glob("*.db"))


def test_a_full_disk_has_no_room_for_the_series_of_a_model(tmp_path: Path) -> None:
    # The bug to catch: `/metrics` makes the series of what has not happened yet, and answered 500 if it could not.
    labels = """from types import SimpleNamespace
engine = SimpleNamespace(labels=[str(n) * 100 for n in range(9000)], task=SimpleNamespace(abstain=None), second=None,
    variant="int8", provider="CPU", manifest=None)
metrics.models = {"mood": SimpleNamespace(name="mood", engine=engine, artifact="0")}
"""
    done = run(FULL.replace("range(3000)", "range(3)").replace("assert metrics.incomplete\n", labels), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the metrics are incomplete from now on") == 1
    assert 'kdc_requests_total{route="/predict",status="200"} 2.0' in done.stdout


def test_metrics_are_made_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch clients without a token who have the event loop make them all the time."""
    now = 100.0
    monkeypatch.setattr("kdc.serving.http.metrics.time", SimpleNamespace(monotonic=lambda: now))
    told = metrics.Metrics()
    first = told.exposition()
    told.answered("/predict", 200, 0.1)
    now = 100.9
    assert told.exposition() == first
    now = 101.1
    assert b'kdc_requests_total{route="/predict",status="200"} 1.0' in told.exposition()


def model_of(labels: list[str], **task: Any) -> Any:
    """A model as far as metrics look at one."""
    known = SimpleNamespace(**{"abstain": None, "labels": labels, "points": (), "kind": "multilabel"} | task)
    manifest = SimpleNamespace(task=known, lineage=SimpleNamespace(label_share=None))
    engine = SimpleNamespace(labels=labels, task=known, second=None, variant="int8", provider="CPU", manifest=manifest)
    return SimpleNamespace(name="mood", engine=engine, artifact="0")


def test_reloads_with_new_labels_make_no_series_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch 10,000 series more for each artifact that takes another one's place, which stay for ever."""
    monkeypatch.setattr(metrics, "FRESH_S", 0.0)
    monkeypatch.setattr(metrics, "_MOST_NAMES", 2000)
    told = metrics.Metrics()
    for reload in range(20):
        told.models = {"mood": model_of([f"{reload}-{label}" for label in range(5)])}
        told._fresh_s = 0.0
        text = told.exposition().decode()
        if reload == 0:
            assert 'kdc_predictions_total{label="0-4",model="mood"}' in text
    assert text.count("kdc_predictions_total{") < 25
    assert 'kdc_predictions_total{label="other",model="mood"}' in text


def test_metrics_that_take_long_to_make_are_told_again_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("kdc.serving.http.metrics.time", SimpleNamespace(monotonic=lambda: now))
    told, made = metrics.Metrics(), []

    def slow() -> bytes:
        nonlocal now
        now += 0.7
        made.append(now)
        return b""

    monkeypatch.setattr(told, "_tell", slow)
    for _ in range(200):  # 20 seconds of requests
        told.exposition()
        now += 0.1
    assert len(made) == 3


def test_thresholds_by_no_rows_leave_the_metrics_whole() -> None:
    none = SimpleNamespace(of=0)
    point = SimpleNamespace(label="a", tuning=SimpleNamespace(precision=none, recall=none, false_alarms=none))
    told = metrics.Metrics()
    told.models = {"mood": model_of(["a", "b"], points=(point,))}
    assert b"kdc_artifact_info{" in told.exposition()


def test_the_manual_lists_every_metric_with_its_type_and_labels() -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(kdc_\w+)` \| (\w+) \|(.*?)\|", page, re.MULTILINE)
    listed = {name: [kind, *re.findall(r"`(\w+)`", labels)] for name, kind, labels in rows}
    assert listed == json.loads((ROOT / "tests" / "interface" / "metrics.json").read_text(encoding="utf-8"))
