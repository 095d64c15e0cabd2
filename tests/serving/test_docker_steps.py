"""The Dockerfile's steps without Docker: its installs, then its command as an unprivileged user, checked and stopped.

What only Docker does (base image, layers, cache mounts, user and root filesystem) is not seen here.
"""

import contextlib
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import Finished
from live import ROOT, free_port

pytestmark = pytest.mark.slow

_NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def unprivileged() -> dict[str, Any]:
    """Arguments that make a subprocess run as a user without rights; none where the tests do so already."""
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


@pytest.fixture
def python(unprivileged: dict[str, Any]) -> str:
    """A Python which that user can start: the one of the tests may lie in root's home."""
    usable = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
    for candidate in (os.path.realpath(sys.executable), "/usr/local/bin/python3", "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            if subprocess.run([candidate, "-c", usable], cwd="/", check=False, **unprivileged).returncode == 0:
                return candidate
    pytest.skip("there is no Python 3.11 with ensurepip that an unprivileged user may start")


def stages(moved: dict[str, str]) -> list[str]:
    """The builder and the image: their instructions, one a line, with paths and names moved to where the test is."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert not (gone := [old for old in moved if old not in text]), f"the Dockerfile has no {gone} any more"
    text = re.sub("|".join(map(re.escape, moved)), lambda found: moved[found[0]], text)
    return text.split("\nFROM ")[1:]


def instructions(stage: str, keyword: str) -> list[str]:
    return re.findall(rf"^{keyword} (.*)$", stage, re.MULTILINE)


def variables(stage: str) -> dict[str, str]:
    pairs = [part.partition("=") for line in instructions(stage, "ENV") for part in shlex.split(line)]
    return {name: value.replace("$PATH", os.environ["PATH"]) for name, _, value in pairs}


def copy_context(target: Path) -> None:
    """What `COPY . .` sees: .dockerignore refuses everything but the names behind a `!`."""
    target.mkdir()
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        for path in ROOT.glob(line.removeprefix("!")) if line.startswith("!") else ():
            if path.is_dir():
                place = target / path.relative_to(ROOT)
                shutil.copytree(path, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, target)


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(httpx2.TransportError):
            if httpx2.get(f"{url}/health").status_code == 200:
                return
        time.sleep(0.1)
    pytest.fail(f"not healthy after 60 s: {log.read_text()}")


def test_the_image_without_docker(finished: Finished, folder: Path, unprivileged: dict[str, Any], python: str) -> None:
    environment, writable, port = folder / "kdc", folder / "tmp", free_port()
    builder, image = stages(
        {
            "python -m venv": f"{python} -m venv",
            "/opt/kdc": str(environment),
            "/opt/build": str(folder / "build"),
            "=/tmp/": f"={writable}/",
            "=/artifact": f"={folder / 'artifact'}",
            "3000": str(port),
        }
    )
    shutil.copytree(finished.artifact, folder / "artifact")
    writable.mkdir()
    writable.chmod(0o1777)
    copy_context(folder / "src")

    for command in instructions(builder, "RUN"):
        done = subprocess.run(
            ["sh", "-c", re.sub(r"--mount=\S+\s*", "", command)],
            cwd=folder / "src",
            env={**os.environ, "CUDA": "", **variables(builder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    (packages,) = environment.glob("lib/python*/site-packages")
    installed = {item.metadata["Name"].lower() for item in importlib.metadata.distributions(path=[str(packages)])}
    assert {"kdc", "bentoml", "onnxruntime"} <= installed
    assert not installed & {"torch", "transformers", "datasets", "peft", "onnxruntime-gpu"}

    (entrypoint,), (check,) = instructions(image, "ENTRYPOINT"), instructions(image, "HEALTHCHECK")
    health = json.loads(check.partition("CMD ")[2])
    inside: dict[str, Any] = {"env": variables(image) | {"TMPDIR": str(writable)}, "cwd": "/", **unprivileged}
    assert subprocess.run(health, check=False, stderr=subprocess.DEVNULL, **inside).returncode == 1
    log = folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*json.loads(entrypoint), "--port", str(port)],
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            **inside,
        )
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", process, log)
        answer = httpx2.post(f"http://127.0.0.1:{port}/predict", json={"inputs": ["w1 w4", "w5"]})
        assert {entry["label"] for entry in answer.json()} == {"yes", "no"}
        assert subprocess.run(health, check=False, **inside).returncode == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):  # as it should be
            os.killpg(process.pid, signal.SIGKILL)
    assert "telemetry" not in log.read_text()
