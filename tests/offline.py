"""Imported first by a process that forks children (`forked.py`): no network, one thread, as those libraries read at
their import."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
