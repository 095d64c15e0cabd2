"""Starts `kdc` in processes of its own, without importing torch and transformers anew in each.

A server process imports them once and forks a child for each command (multiprocessing's "forkserver").
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_PRELOADED = [
    "offline",
    "kdc.pipeline.run",
    "torch",
    "transformers.trainer",
    "peft",
    "datasets",
    "onnxruntime",
    "optimum.onnx",
]


def start(arguments: list[str], stderr: Path) -> ForkServerProcess:
    """Start `kdc` with these arguments in a child process that writes its stderr to a file."""
    return _start(arguments, stderr, None, {})


def run(arguments: list[str], environment: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run `kdc` with these arguments to its end, in a child process with further environment variables."""
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder) / "stdout", Path(folder) / "stderr"
        process = _start(arguments, stderr, stdout, environment)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"kdc {' '.join(arguments)} took more than {timeout:g} s")
        return subprocess.CompletedProcess(arguments, process.exitcode, stdout.read_text(), stderr.read_text())


def _start(arguments: list[str], stderr: Path, stdout: Path | None, environment: dict[str, str]) -> ForkServerProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)  # has an effect before the first child only
    process = context.Process(target=_main, args=(arguments, stderr, stdout, environment))
    process.start()
    return process


def _main(arguments: list[str], stderr: Path, stdout: Path | None, environment: dict[str, str]) -> None:
    from kdc.cli import main

    for file, descriptor in ((stderr, 2), (stdout, 1)):
        if file is not None:
            with file.open("wb") as stream:
                os.dup2(stream.fileno(), descriptor)
    # A shell that runs the tests in the background has them ignore Ctrl-C, which a child would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    sys.argv = ["kdc", *arguments]
    main()
