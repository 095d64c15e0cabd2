"""Starts `kdc` in processes that can be killed, without importing torch and transformers anew in each.

A server process imports them once and forks a child for each command (multiprocessing's "forkserver").
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_PRELOADED = ["kdc.pipeline.run", "torch", "transformers.trainer", "peft", "datasets", "onnxruntime", "optimum.onnx"]


def start(arguments: list[str], stderr: Path) -> ForkServerProcess:
    """Start `kdc` with these arguments in a child process that writes its stderr to a file."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)  # has an effect before the first child only
    process = context.Process(target=_main, args=(arguments, stderr))
    process.start()
    return process


def _main(arguments: list[str], stderr: Path) -> None:
    from kdc.cli import main

    with stderr.open("wb") as stream:
        os.dup2(stream.fileno(), 2)
    # A shell that runs the tests in the background has them ignore Ctrl-C, which a child would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.argv = ["kdc", *arguments]
    main()
