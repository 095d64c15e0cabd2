"""Threads share two heaps of the C library, so that a service does not keep what each of its threads once needed."""

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, sys, threading
from kdc.common.memory import share_heaps
share_heaps()
libc, all_at_once = ctypes.CDLL(None), threading.Barrier(8)
libc.malloc.restype = ctypes.c_void_p
def take():
    all_at_once.wait()
    libc.malloc(1000)
    all_at_once.wait()
threads = [threading.Thread(target=take) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
libc.fflush(None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heaps")
def test_threads_share_two_heaps() -> None:
    told = subprocess.run([sys.executable, "-P", "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    assert 1 <= told.count("<heap nr=") <= 2
