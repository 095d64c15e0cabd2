"""`kdc serve` calls nobody: no name is looked up and no address beyond this machine is tried, by default settings.

`tests/test_cli.py` shows the same for a run of `kdc compress` on local inputs.
"""

import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from bag_models import write_artifact
from live import served

# An audit hook sees what Python's own sockets are asked for, whatever library asks, and in each child.
WATCH = """
import os, sys


def watch(event, arguments):
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if str(host) not in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "None"):
        with open(os.environ["WATCHED"], "a") as file:
            file.write(f"{event} {host}\\n")


with open(os.environ["WATCHED"], "a") as file:
    file.write("")
sys.addaudithook(watch)
"""
# With them a library would be silent without a word of ours.
SWITCHES = ("BENTOML_DO_NOT_TRACK", "ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE")


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says who was called."""
    (tmp_path / "sitecustomize.py").write_text(WATCH, encoding="utf-8")
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("WATCHED", str(tmp_path / "watched"))
    return tmp_path / "watched"


def test_serving_calls_nobody(watched: Path, tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "mood" / "artifact")
    with served(tmp_path, str(artifact), "--drain-delay", "0") as process:
        assert httpx2.post(f"{process.url}/predict", json={"inputs": "w1 w2"}).status_code == 200
    assert watched.read_text(encoding="utf-8") == ""


def test_the_store_of_bentoml_is_used_without_its_usage_reports(watched: Path, tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "mood" / "artifact")
    done = subprocess.run(
        [sys.executable, "-m", "kdc", "push", str(artifact), "bento:mood"],
        env={**os.environ, "BENTOML_HOME": str(tmp_path / "store")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert watched.read_text(encoding="utf-8") == ""


def test_the_hub_is_not_told_what_else_is_installed_or_who_asks(watched: Path) -> None:
    code = (
        "import kdc.artifact.stores.hub; from huggingface_hub.utils import build_hf_headers\n"
        "print(build_hf_headers(library_name='kdc')['user-agent'])"
    )
    environment = {**os.environ, "AI_AGENT": "somebody"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert {part.split("/")[0].strip() for part in done.stdout.split(";")} == {"kdc", "hf_hub", "python"}


def test_the_watch_sees_a_call(watched: Path) -> None:
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 9))"
    subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert watched.read_text(encoding="utf-8") == "socket.connect 192.0.2.1\n"
